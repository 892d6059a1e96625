//! What happens to plans between two rounds: silos that turn out slower or faster than they enrolled, and importance that the
//! adapters in training know better than the probe did.

use super::{Engine, slowness};
use crate::importance::{Sensed, refreshed};
use crate::plan::{self, Deadline, Importance, PlanSettings};
use fedpipe_core::{Event, ModelSpec, Outcome, PlanChange, RunState, SiloId, SiloProfile, Update};
use std::collections::BTreeMap;

/// How plans follow what the rounds say.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptation {
    /// The base model.
    pub model: ModelSpec,
    /// What the first plan was made with. Its deadline, its steps and its server's rank play no part: those of the plan in
    /// force stand, and so do the ranks up to that.
    pub settings: PlanSettings,
    /// μ of [`Importance`].
    pub own_importance: f64,
    /// Rounds from one look at importance to the next; 0 for none.
    pub refresh_importance: u32,
    /// Rounds of the run: after the last one there is nothing to plan for.
    pub rounds: u32,
}

impl Adaptation {
    /// Whether importance is looked at again after this round.
    pub(super) fn refreshes_after(&self, round: u32) -> bool {
        self.refresh_importance > 0 && round.is_multiple_of(self.refresh_importance) && round < self.rounds
    }

    fn importance<'a>(&self, state: &'a RunState) -> Importance<'a> {
        Importance { federation: &state.importance, own: &state.own_importance, own_share: self.own_importance }
    }

    fn settings(&self, state: &RunState) -> PlanSettings {
        let (deadline, local_steps) = (Deadline::Seconds(state.plan.deadline_s), state.plan.local_steps);
        let mut settings = PlanSettings { deadline, local_steps, ..self.settings.up_to(state.plan.server_rank) };
        settings.tuning.never.extend(state.never_tune.iter().cloned());
        settings
    }

    /// The silos at the pace that their plans reckon with.
    fn reckoned(&self, state: &RunState) -> BTreeMap<SiloId, SiloProfile> {
        let planned = |silo: &SiloId| state.slowness.get(silo).map_or(1.0, |slowness| slowness.planned);
        let profile = |(silo, profile)| (SiloId::clone(silo), slowness::reckoned(profile, planned(silo)));
        state.profiles.iter().map(profile).collect()
    }
}

impl Engine<'_> {
    /// Changes the plans of `state`, whose last round brought `updates`.
    pub(super) fn adapt(&self, adaptation: &Adaptation, state: &mut RunState, updates: &[Update]) {
        if state.round >= adaptation.rounds {
            return;
        }
        self.follow_speed(adaptation, state);
        if adaptation.refreshes_after(state.round) {
            self.refresh_importance(adaptation, state, updates);
        }
    }

    /// Plans the silos again whose pace is not what their plans reckon with, each for what was learned of it.
    fn follow_speed(&self, adaptation: &Adaptation, state: &mut RunState) {
        let round = state.round;
        let due: Vec<SiloId> = (state.slowness.iter())
            .filter(|(silo, slowness)| slowness::is_due(slowness, round) && state.plan.silos.contains_key(silo))
            .map(|(silo, _)| silo.clone())
            .collect();
        if due.is_empty() {
            return;
        }
        let mut profiles = adaptation.reckoned(state);
        for silo in &due {
            if let (Some(profile), Some(slowness)) = (state.profiles.get(silo), state.slowness.get(silo)) {
                profiles.insert(silo.clone(), slowness::reckoned(profile, slowness.learned()));
            }
        }
        let mut plan = state.plan.clone();
        let importance = adaptation.importance(state);
        let settings = adaptation.settings(state);
        let refused = match plan::again(&adaptation.model, &profiles, importance, &settings, &mut plan, &due) {
            Ok(refused) => refused.into_iter().collect::<BTreeMap<_, _>>(),
            Err(error) => return self.warn(format!("no silo is planned again: {error}")),
        };
        state.plan = plan;
        for silo in due {
            let Some(slowness) = state.slowness.get_mut(&silo) else { continue };
            let (learned, planned) = (slowness.learned(), slowness.planned);
            (slowness.replanned, slowness.off) = (Some(round), 0);
            if let Some(error) = refused.get(&silo) {
                if !std::mem::replace(&mut slowness.warned, true) {
                    self.warn(format!(
                        "silo {silo} takes {learned:.2} times as long as its profile foresees and keeps its plan, since no \
                         other keeps the deadline: {error}"
                    ));
                }
                continue;
            }
            (slowness.planned, slowness.warned) = (learned, false);
            let reason = format!(
                "its last rounds took {learned:.2} times as long as its profile foresees; its plan reckoned with {planned:.2}"
            );
            let Some(plan) = state.plan.silos.get_mut(&silo) else { continue };
            plan.reasons.push(format!("planned again after round {round}: {reason}"));
            let (plan, slowness) = (plan.clone(), learned);
            let changed = PlanChange { round, silo: Some(silo.clone()), reason: reason.clone() };
            state.plan_changes.push(changed);
            self.observer.observe(&Event::Replanned { round, silo, slowness, reason, plan });
        }
    }

    /// Looks at importance again, the federation's and the silos' own, and plans anew for everybody.
    fn refresh_importance(&self, adaptation: &Adaptation, state: &mut RunState, updates: &[Update]) {
        let mut sensed = Vec::new();
        for update in updates.iter().filter(|update| !update.sensitivity.is_empty()) {
            let Outcome::Trained(adapter) = &update.outcome else { continue };
            let by_weight = adapter.factors.iter().filter_map(|(weight, factors)| {
                let worth = plan::rank_value(factors.rank());
                Some((weight.clone(), update.sensitivity.get(weight)? / worth)).filter(|_| worth > 0.0)
            });
            let of_silo = Sensed { examples: update.examples, by_weight: by_weight.collect() };
            let own = state.own_importance.get(&update.silo).unwrap_or(&state.importance);
            let own = refreshed(own, std::slice::from_ref(&of_silo));
            state.own_importance.insert(update.silo.clone(), own);
            sensed.push(of_silo);
        }
        if sensed.is_empty() {
            return self.warn(format!("round {} says nothing of importance, so it stays as it is", state.round));
        }
        state.importance = refreshed(&state.importance, &sensed);
        self.observer.observe(&Event::Identified { importance: state.importance.clone() });
        let settings = adaptation.settings(state);
        let profiles = adaptation.reckoned(state);
        match plan::plan(&adaptation.model, &profiles, adaptation.importance(state), &settings) {
            Ok(plan) => {
                let (deadline_reason, chosen) = (state.plan.deadline_reason.clone(), state.plan.chosen.clone());
                state.plan = fedpipe_core::Plan { deadline_reason, chosen, ..plan };
                let reason = "importance was estimated again from the adapters in training".to_string();
                state.plan_changes.push(PlanChange { round: state.round, silo: None, reason });
                self.observer.observe(&Event::Planned(state.plan.clone()));
            }
            Err(error) => {
                self.warn(format!("the plans stay as they are after importance was estimated again: {error}"))
            }
        }
    }
}
