/** What the construct decides itself. */
const OWN = [
  'AMBERFLO_BASE_URL', 'API_KEY_SECRET_NAME', 'API_KEY_SECRET_ID', 'STREAM', 'DEAD_LETTER_QUEUE', 'LEASE_TABLE', 'AUTH',
  'EVENT_BUS', 'EVENT_SOURCE', 'EVENT_DETAIL_TYPE', 'RATE_REQUESTS_PER_SECOND', 'LOG_FORMAT', 'PARTITION_KEY_PATH',
  // Beside the secret's name the programs refuse it, and would not start.
  'AMBERFLO_API_KEY_FILE',
];
/** What must not lie in a template, where everybody can read it. */
const SECRET = ['AMBERFLO_API_KEY'];

/** Refuses settings that are not for the user of the construct to make. */
export function checkSettings(settings: Record<string, string>): Record<string, string> {
  for (const name of Object.keys(settings)) {
    if (SECRET.includes(name)) {
      throw new Error(`settings: ${name} would lie in the template for everybody to read; put it in Secrets Manager`);
    }
    if (OWN.includes(name)) {
      throw new Error(`settings: ${name} is made by the construct; there is a property for it, or nothing to choose`);
    }
  }
  return settings;
}
