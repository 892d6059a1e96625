//! The merged adapter's largest rank where nobody gives it: that with which the federation is soonest done.
//!
//! Every silo downloads the whole merged adapter in every round and applies what it does not train of it. A lower rank makes
//! that less, and leaves the silos no rank above it. So every rank R of the menu is tried: the menu up to R, and R on the
//! server. The deadline is worked out for each, unless it is given, and the least time to a target by [`super::deadline`] wins;
//! ties go to the larger rank.

use super::{Enrolled, PlanError, PlanSettings, deadline};
use fedpipe_core::Chosen;

/// The key of the choice in the configuration.
pub const SERVER_RANK: &str = "federation.server_rank";
/// Times nearer than this share are equal.
const EQUAL: f64 = 1e-9;

/// A rank that was tried.
struct Tried {
    rank: usize,
    /// Time to a target, up to a factor; none where some silo has no plan.
    needed: Option<f64>,
}

/// The settings with the rank, the deadline with its reason, and the choice to be told.
///
/// # Errors
/// Where no rank leaves every silo a plan, what it lacks at the smallest.
pub(super) fn soonest(
    enrolled: &Enrolled<'_>,
    settings: &PlanSettings,
) -> Result<(PlanSettings, (f64, String), Chosen), PlanError> {
    let mut ranks = settings.menu.ranks.clone();
    if ranks.is_empty() {
        ranks.push(settings.merged_rank());
    }
    let mut best: Option<(f64, PlanSettings, (f64, String))> = None;
    let (mut tried, mut refused) = (Vec::new(), None);
    for rank in ranks {
        let settings = settings.up_to(rank);
        let shared = enrolled.weights(&settings)?;
        let views = enrolled.views(&shared);
        let found = deadline::of(enrolled, &views, &settings).and_then(|deadline| {
            let needed = deadline::needed(enrolled, &views, &settings, deadline.0)?;
            Ok((needed, deadline))
        });
        tried.push(Tried { rank, needed: found.as_ref().ok().map(|(needed, _)| *needed) });
        match found {
            Ok((needed, deadline)) => {
                if best.as_ref().is_none_or(|(least, ..)| needed <= least * (1.0 + EQUAL)) {
                    best = Some((needed, settings, deadline));
                }
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let (needed, settings, deadline) = best.ok_or_else(|| refused.unwrap_or(PlanError::NoSilos))?;
    let rank = settings.merged_rank();
    let (key, value) = (SERVER_RANK.into(), rank.to_string());
    Ok((settings, deadline, Chosen { key, value, reason: reason(rank, needed, &tried) }))
}

/// Why this rank, against the others that were tried.
fn reason(rank: usize, needed: f64, tried: &[Tried]) -> String {
    let others = || tried.iter().filter(|other| other.rank != rank);
    if others().next().is_none() {
        return "adapter.ranks have no other".into();
    }
    let mut reason = "the federation is expected to be soonest done".to_string();
    let slower = others().filter_map(|other| Some((other.rank, 100.0 * (other.needed? / needed - 1.0))));
    for (place, (rank, percent)) in slower.enumerate() {
        reason += &match place {
            0 => format!("; {rank} would take {percent:.0} % longer"),
            _ => format!(", {rank} {percent:.0} %"),
        };
    }
    let without: Vec<String> = others().filter(|other| other.needed.is_none()).map(|o| o.rank.to_string()).collect();
    if !without.is_empty() {
        reason += &format!("; with {} some silo has no plan", without.join(" or "));
    }
    reason
}
