/** The alerts of `../../rules/alerts.yaml`; a test holds this list against it. */
export const ALERTS = [
  'MeteringLatencyBudgetBurn',
  'MeteringLagRising',
  'MeteringRetentionAtRisk',
  'MeteringNoWorker',
  'MeteringSendingPaused',
  'MeteringFlowImbalance',
  'MeteringShardsUnowned',
  'MeteringCrashLoop',
  'MeteringRecordsLost',
  'MeteringDeadLetters',
  'MeteringLeasesUneven',
  'MeteringThrottled',
  'MeteringDuplicatesJump',
  'MeteringCountMismatch',
  'MeteringDedupKeysEvicted',
  'MeteringPayloadOmitted',
  'MeteringMeterBudget',
  'MeteringControlApiErrors',
  'MeteringControlApiDown',
] as const;

/** The anchor of an alert's section in the runbook. */
export function section(alert: (typeof ALERTS)[number]): string {
  return alert.toLowerCase();
}
