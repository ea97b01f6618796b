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
