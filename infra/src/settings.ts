/** Settings of worker and control API that are the user's of the construct to make. */
export const SETTINGS = [
  'ALLOW_AFLO_DIMENSIONS', 'AMBERFLO_INGEST_URL', 'API_KEY_REFRESH', 'BATCH_LINGER', 'BATCH_MAX_BYTES', 'BATCH_MAX_EVENTS',
  'BUFFER_MAX_BYTES', 'CALLER_REQUESTS_PER_SECOND', 'DEDUP_MAX_KEYS', 'DEDUP_WINDOW', 'LOG', 'MAX_EVENT_AGE', 'MAX_EVENT_AHEAD',
  'MAX_IN_FLIGHT', 'METER_HOURLY_BUDGET', 'METRICS_NAMESPACE', 'OTEL_EXPORTER_OTLP_ENDPOINT',
  'OTEL_RESOURCE_ATTRIBUTES', 'OTEL_SERVICE_NAME', 'OTEL_TRACES_SAMPLER', 'OTEL_TRACES_SAMPLER_ARG', 'REQUEST_TIMEOUT',
];
/** And of the AWS SDK, but for what the platform sets. */
const AWS_SDK = /^AWS_(?!REGION$|DEFAULT_REGION$|ACCESS_KEY_ID$|SECRET_ACCESS_KEY$|SESSION_TOKEN$|LAMBDA_)[A-Z0-9_]+$/;

/** Refuses settings that the construct makes itself, that do not exist, or that must not lie in a template. */
export function checkSettings(settings: Record<string, string>): Record<string, string> {
  for (const name of Object.keys(settings)) {
    if (name === 'AMBERFLO_API_KEY') {
      throw new Error(`settings: ${name} would lie in the template for everybody to read; put it in Secrets Manager`);
    }
    if (!SETTINGS.includes(name) && !AWS_SDK.test(name)) {
      throw new Error(
        `settings: ${name}; allowed are ${SETTINGS.join(', ')}, and those of the AWS SDK. ` +
          'What the construct makes itself has a property, or leaves nothing to choose',
      );
    }
  }
  return settings;
}
