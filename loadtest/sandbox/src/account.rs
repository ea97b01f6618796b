//! What an Amberflo account holds besides its usage.

use crate::customers::Customers;
use crate::filtering_rules::FilteringRules;
use crate::meters::Meters;

#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) meters: Meters,
    pub(crate) filtering_rules: FilteringRules,
    pub(crate) customers: Customers,
}
