import { HttpApi, HttpMethod } from 'aws-cdk-lib/aws-apigatewayv2';
import { HttpJwtAuthorizer } from 'aws-cdk-lib/aws-apigatewayv2-authorizers';
import { HttpLambdaIntegration } from 'aws-cdk-lib/aws-apigatewayv2-integrations';
import { Construct } from 'constructs';

import { AmberfloMetering } from '../../../src';

/** The part of SBT's `ControlPlaneAPI` that metering sees, without the rest of a control plane: one route of SBT's. */
export class ControlPlaneApi extends Construct {
  readonly api: HttpApi;
  readonly jwtAuthorizer: HttpJwtAuthorizer;

  constructor(scope: Construct, id: string, metering: AmberfloMetering) {
    super(scope, id);
    this.api = new HttpApi(this, 'Api');
    this.jwtAuthorizer = new HttpJwtAuthorizer('Authorizer', 'https://issuer.example.com', { jwtAudience: ['admins'] });
    this.api.addRoutes({
      path: '/usage/{meterId}',
      methods: [HttpMethod.GET],
      integration: new HttpLambdaIntegration('Usage', metering.fetchUsageFunction.handler),
      authorizer: this.jwtAuthorizer,
    });
  }
}

/** What API Gateway hands to a function for a request that its authorizer has let through. */
export function request(method: string, path: string, body: unknown): string {
  return JSON.stringify({
    version: '2.0',
    routeKey: `${method} ${path}`,
    rawPath: path,
    rawQueryString: '',
    headers: { 'content-type': 'application/json' },
    requestContext: {
      accountId: '000000000000',
      apiId: 'emulated',
      authorizer: { jwt: { claims: { sub: 'an-admin', token_use: 'access' }, scopes: null } },
      domainName: 'api.example.com',
      http: { method, path, protocol: 'HTTP/1.1', sourceIp: '192.0.2.17', userAgent: 'test' },
      requestId: 'JKJaXmPLvHcESHA=',
      routeKey: `${method} ${path}`,
      stage: '$default',
      timeEpoch: Date.now(),
    },
    body: JSON.stringify(body),
    isBase64Encoded: false,
  });
}
