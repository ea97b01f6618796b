import { Duration, Token } from 'aws-cdk-lib';

/** A property that is not what it may be: one line that names it, what was given and what is allowed. */
export function refuse(name: string, given: unknown, allowed: string): never {
  throw new Error(`${name}: ${given instanceof Duration ? given.toHumanString() : JSON.stringify(given)}; allowed is ${allowed}`);
}

/** Checks a whole number, unless it is known only at deployment. */
export function checkInteger(name: string, given: number | undefined, least: number, most = Number.MAX_SAFE_INTEGER): void {
  if (given !== undefined && !Token.isUnresolved(given) && !(Number.isInteger(given) && given >= least && given <= most)) {
    refuse(name, given, most === Number.MAX_SAFE_INTEGER ? `${least} or more, whole` : `${least} to ${most}, whole`);
  }
}

/** Checks a time that AWS takes in whole units, unless it is known only at deployment. */
export function checkDuration(name: string, given: Duration | undefined, unit: 'seconds' | 'hours' | 'days', least: number, most: number): void {
  if (given === undefined || given.isUnresolved()) {
    return;
  }
  const convert = { seconds: given.toSeconds, hours: given.toHours, days: given.toDays }[unit];
  const count = convert.call(given, { integral: false });
  if (!Number.isInteger(count) || count < least || count > most) {
    refuse(name, given, `${least} to ${most} ${unit}, whole`);
  }
}

/** Checks a text against what it must look like, unless it is known only at deployment. */
export function checkText(name: string, given: string | undefined, pattern: RegExp, allowed: string): void {
  if (given !== undefined && !Token.isUnresolved(given) && !pattern.test(given)) {
    refuse(name, given, allowed);
  }
}

/** Checks that a date is one; words that may stand in its place are not looked at. */
export function checkTime(name: string, given: Date | string | undefined, allowed: string): void {
  if (given instanceof Date && Number.isNaN(given.getTime())) {
    refuse(name, 'Invalid Date', allowed);
  }
}
