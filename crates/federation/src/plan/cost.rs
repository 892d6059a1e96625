//! The cost model: memory and time of one silo's round, a line for every term.
//!
//! The terms and their closed forms are this project's own (arXiv 2404.06448 gives no closed form of its budgets); the
//! coefficients come from a short measured profile of the machine, [`fedpipe_core::DeviceProfile`].
//!
//! | symbol | is | unit |
//! |---|---|---|
//! | `b`, `f`, `ℓ`, `L` | batch size, base format, lowest adapted layer (`L` with only a head), layers | texts, –, –, – |
//! | `c` | 1 when the inside of adapted layers is computed again in the backward pass, 0 when it is kept | – |
//! | `r_m`, `d_m` | rank of weight m that trains; inputs + outputs of m | –, values |
//! | `h` | values of the head | values |
//! | `q_m` | rank of the factors of m that are only applied | – |
//! | `T̂`, `T`, `s` | tokens of a large batch; tokens of all steps; steps | tokens, tokens, steps |
//! | `v` | speed of the silo relative to the profiled machine | – |
//!
//! Memory in bytes, values being `f32` except activations, whose coefficients are those of the format that `f` has for
//! them ([`BaseFormat::activations`]):
//!
//! ```text
//! base        = bytes of the frozen weights in f
//! adapters    = 4·(Σ d_m·r_m + Σ d_m·q_m + h)
//! gradients   = 4·(Σ d_m·r_m + h)
//! optimizer   = 8·(Σ d_m·r_m + h)                                      AdamW's two moments
//! activations = T̂·(layer_bytes·(L − ℓ) + adapter_bytes·Σ r_m)                                            c = 0
//!               T̂·(input_bytes·(L − ℓ) + layer_bytes + adapter_bytes·max over layers of Σ r_m)           c = 1, ℓ < L
//! workspace   = T̂·workspace_bytes[c] + fixed_bytes                              c = 0 where nothing is adapted
//! ```
//!
//! Time in seconds:
//!
//! ```text
//! forward  = (T·L − χ·T·min(p, L − 1))·forward_s[f]/v
//! backward = T·(L − ℓ)·(backward_s[f] + c·forward_s[f])/v
//! adapter  = T·adapter_s·((1 + c/3)·Σ r_m + ⅓·(Σ q_m − χ·Σ_{layer(m) < p} q_m) + (1 + c)/3·Σ_{layer(m) ≥ ℓ} q_m)/v
//! fixed    = s·step_overhead/v
//! download = (width·(Σ d_m·(r_m + q_m) + h) + names of 4 factors a weight and of the head) over the link
//! upload   = (width·(Σ d_m·r_m + h) + names of 2 factors a weight and of the head) over the link
//! ```
//!
//! Data in bytes: what download and upload move together. Where `server_rank` is no less than r_m, the download is the same for
//! all ranks, and data grows with the upload alone. Names (with formats, shapes and places) are counted at their most
//! ([`beside_values`]), every weight trained and applied, so that they do not depend on ranks either.
//!
//! A factor pair that trains takes two products forward and four backward; one that is only applied takes the two
//! forward and, at or above ℓ, two backward, hence the thirds; recomputation makes the forward ones again. With it the
//! inputs of all adapted layers stay, and the inside of one lives at a time (Chen et al., arXiv 1604.06174, a segment a
//! layer). A plan assumes the worst case of the merged adapter: rank `server_rank` on every candidate, so
//! q_m = max(server_rank − r_m, 0). The virtual clock ([`crate::simulate`]) puts the ranks, tokens and steps of the work
//! that was really done into the same formula.
//!
//! χ is the share of a round's tokens in texts that an earlier batch of the round had: what the lowest `p` layers make of them
//! is kept (`fedpipe_model::PrefixCache`) and not computed again. A silo goes through its N texts s·b/N times a round, so a
//! plan takes χ = max(0, 1 − N/(s·b)), less where its disk does not hold them all. `p` is ℓ, or the lowest layer with anything
//! attached where that saves more. A cache may hold texts of earlier rounds, too, but a run that was resumed has lost them, and a
//! run must not hang on that: the model leaves them out, and with lower layers that nobody trains it is an upper bound.

use fedpipe_core::{
    BaseFormat, CandidateWeight, DeviceProfile, MemoryTerms, ModelSpec, SiloProfile, TimeTerms, WeightId,
};
use std::collections::BTreeMap;

/// Bytes of an `f32`.
const VALUE_BYTES: f64 = 4.0;
/// Bytes of AdamW's two moments of one value.
const OPTIMIZER_BYTES: f64 = 8.0;
/// What a factor pair costs in the forward pass against training it; backward through one that is only applied costs as
/// much.
const FORWARD_SHARE: f64 = 1.0 / 3.0;

/// Most bytes that a tensor takes in a message beside its values and the name of its weight: the rest of its name, format, shape
/// and place.
const TENSOR_BYTES: f64 = 112.0;
/// Most bytes that a message takes beside its tensors.
const MESSAGE_BYTES: f64 = 32.0;

/// Most bytes that a task and its update take beside values: every weight trains, by two factors, and in the task is applied, by
/// two more.
pub(crate) fn beside_values(model: &ModelSpec) -> [f64; 2] {
    let tensor = |name: &str| name.len() as f64 + TENSOR_BYTES;
    let weights: f64 = model.candidates.iter().map(|candidate| tensor(candidate.id.as_str())).sum();
    let head: f64 = model.head.keys().map(|name| tensor(name)).sum();
    [4.0, 2.0].map(|factors| factors * weights + head + MESSAGE_BYTES)
}

/// All that a plan decides beside its ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Texts in a batch.
    pub batch_size: usize,
    /// How many times the federation's local steps a round has.
    pub step_multiple: usize,
    /// Format of the frozen weights.
    pub base_format: BaseFormat,
    /// Whether the backward pass computes the inside of the adapted layers again.
    pub recompute: bool,
}

/// What an adapter asks of a step: the sums of the cost model over the weights. Sums, so that a search can change one
/// weight at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterLoad {
    /// Lowest layer that trains, `ℓ`; the number of layers when only the head does.
    pub lowest: usize,
    /// Lowest layer with a factor pair, trained or applied; the number of layers without one.
    pub attached: usize,
    /// Σ d_m·r_m.
    pub trained_values: f64,
    /// Σ d_m·q_m.
    pub applied_values: f64,
    /// Σ r_m of every layer, from the embeddings upwards.
    pub layer_ranks: Vec<f64>,
    /// Σ q_m.
    pub applied_ranks: f64,
    /// Σ q_m over the weights at or above `lowest`.
    pub applied_ranks_above: f64,
    /// `h`.
    pub head_values: f64,
}

impl AdapterLoad {
    /// The load of a head alone, no weight trained or applied.
    pub fn head_only(model: &ModelSpec) -> Self {
        Self::starting_at(model, model.layers)
    }

    fn starting_at(model: &ModelSpec, lowest: usize) -> Self {
        Self {
            lowest,
            attached: model.layers,
            trained_values: 0.0,
            applied_values: 0.0,
            layer_ranks: vec![0.0; model.candidates.iter().map(|c| c.layer + 1).fold(model.layers, usize::max)],
            applied_ranks: 0.0,
            applied_ranks_above: 0.0,
            head_values: model.head_parameters() as f64,
        }
    }

    /// The load of training `trained` and applying `applied`, each giving a candidate's rank.
    pub fn of(
        model: &ModelSpec,
        trained: impl Fn(&CandidateWeight) -> usize,
        applied: impl Fn(&CandidateWeight) -> usize,
    ) -> Self {
        let layers_trained = model.candidates.iter().filter(|c| trained(c) > 0).map(|c| c.layer);
        let mut load = Self::starting_at(model, layers_trained.min().unwrap_or(model.layers));
        for candidate in &model.candidates {
            load.add(candidate, trained(candidate), applied(candidate));
        }
        load
    }

    /// The worst case of a plan: `ranks` train and the merged adapter has `server_rank` on every candidate.
    pub fn planned(model: &ModelSpec, ranks: &BTreeMap<WeightId, usize>, server_rank: usize) -> Self {
        let rank = |c: &CandidateWeight| ranks.get(&c.id).copied().unwrap_or(0);
        Self::of(model, rank, |c| capped(c, server_rank).saturating_sub(rank(c)))
    }

    /// L − ℓ.
    fn adapted_layers(&self, model: &ModelSpec) -> f64 {
        model.layers.saturating_sub(self.lowest) as f64
    }

    /// Σ r_m.
    fn trained_ranks(&self) -> f64 {
        self.layer_ranks.iter().sum()
    }

    fn add(&mut self, candidate: &CandidateWeight, trained: usize, applied: usize) {
        self.trained_values += candidate.parameters(trained) as f64;
        self.applied_values += candidate.parameters(applied) as f64;
        self.layer_ranks[candidate.layer] += trained as f64;
        self.applied_ranks += applied as f64;
        if trained + applied > 0 {
            self.attached = self.attached.min(candidate.layer);
        }
        if candidate.layer >= self.lowest {
            self.applied_ranks_above += applied as f64;
        }
    }
}

/// A rank is never larger than the weight: more would be redundant.
pub(super) fn capped(candidate: &CandidateWeight, rank: usize) -> usize {
    rank.min(candidate.inputs).min(candidate.outputs)
}

/// Memory of a step with `tokens` in its batch; `None` when the model's size in `format` or the memory of activations in
/// its format is not known.
pub fn memory(
    model: &ModelSpec,
    device: &DeviceProfile,
    load: &AdapterLoad,
    format: BaseFormat,
    recompute: bool,
    tokens: f64,
) -> Option<MemoryTerms> {
    let trained = load.trained_values + load.head_values;
    let bytes = device.memory.get(&format.activations())?;
    let layers = load.adapted_layers(model);
    let per_token = if recompute {
        let largest = load.layer_ranks.iter().copied().fold(0.0, f64::max);
        bytes.layer_input_bytes_per_token * layers
            + bytes.layer_bytes_per_token * layers.min(1.0)
            + bytes.adapter_bytes_per_token_rank * largest
    } else {
        bytes.layer_bytes_per_token * layers + bytes.adapter_bytes_per_token_rank * load.trained_ranks()
    };
    let workspace = match recompute && layers > 0.0 {
        true => bytes.recompute_workspace_bytes_per_token,
        false => bytes.workspace_bytes_per_token,
    };
    Some(MemoryTerms {
        base: *model.base_bytes.get(&format)? as f64,
        adapters: VALUE_BYTES * (trained + load.applied_values),
        gradients: VALUE_BYTES * trained,
        optimizer: OPTIMIZER_BYTES * trained,
        activations: tokens * per_token,
        workspace: tokens * workspace + bytes.fixed_bytes,
    })
}

/// What a round's batches hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundBatches {
    /// Optimizer steps.
    pub steps: usize,
    /// Tokens in all of them, `T`.
    pub tokens: f64,
    /// Those in texts that an earlier batch had and that are kept, χ·T.
    pub repeated: f64,
}

/// Seconds of computing on the silo for the batches of a round, transfers left at zero; `None` when `format` was not measured.
pub fn compute_time(
    model: &ModelSpec,
    profile: &SiloProfile,
    load: &AdapterLoad,
    format: BaseFormat,
    recompute: bool,
    batches: RoundBatches,
) -> Option<TimeTerms> {
    let RoundBatches { steps, tokens, repeated } = batches;
    let device = &profile.device;
    let speed = device.time.get(&format)?;
    let again = f64::from(u8::from(recompute));
    let layer_backward_s = speed.backward_s_per_token_layer + again * speed.forward_s_per_token_layer;
    let trained = (1.0 + again * FORWARD_SHARE) * load.trained_ranks();
    let known = if tokens > 0.0 { repeated / tokens } else { 0.0 };
    let kept_to_lowest = load.lowest as f64 * known > load.attached as f64;
    let kept = if kept_to_lowest { load.lowest } else { load.attached };
    // The last layer is always computed. Of a head that trains alone, what is applied there is not told from the rest.
    let kept_layers = kept.min(model.layers.saturating_sub(1)) as f64;
    let below = if kept_to_lowest && kept < model.layers { load.applied_ranks - load.applied_ranks_above } else { 0.0 };
    let applied = FORWARD_SHARE * (load.applied_ranks - known * below + (1.0 + again) * load.applied_ranks_above);
    Some(TimeTerms {
        forward: (tokens * model.layers as f64 - repeated * kept_layers) * speed.forward_s_per_token_layer
            / profile.speed,
        backward: tokens * load.adapted_layers(model) * layer_backward_s / profile.speed,
        adapter: tokens * device.adapter_s_per_token_rank * (trained + applied) / profile.speed,
        fixed: steps as f64 * device.step_overhead_s / profile.speed,
        download: 0.0,
        upload: 0.0,
    })
}

/// The cost of a round on one silo as a plan predicts it.
#[derive(Debug, Clone, Copy)]
pub struct CostModel<'a> {
    /// The base model.
    pub model: &'a ModelSpec,
    /// The silo.
    pub profile: &'a SiloProfile,
    /// Largest rank of the merged adapter.
    pub server_rank: usize,
    /// Optimizer steps of a round, of which a frame takes a multiple.
    pub local_steps: usize,
    /// Bytes that a value takes in the codec, `width`.
    pub value_bytes: f64,
}

impl CostModel<'_> {
    /// Predicted memory and time of a round; `None` when the frame's format was not measured.
    pub fn round(&self, load: &AdapterLoad, frame: Frame) -> Option<(MemoryTerms, TimeTerms)> {
        let Frame { batch_size, base_format: format, recompute, .. } = frame;
        let lengths = &self.profile.lengths;
        let large_batch = lengths.large_batch(batch_size);
        let memory = memory(self.model, &self.profile.device, load, format, recompute, large_batch)?;
        let steps = self.steps(frame);
        let tokens = (steps * batch_size) as f64 * lengths.mean;
        let batches = RoundBatches { steps, tokens, repeated: tokens * self.repeated(frame) };
        let mut time = compute_time(self.model, self.profile, load, format, recompute, batches)?;
        let [down, up] = self.moved(load);
        time.upload = self.profile.transfer_s(up);
        time.download = self.profile.transfer_s(down);
        Some((memory, time))
    }

    /// Optimizer steps of a round in a frame.
    pub(super) fn steps(&self, frame: Frame) -> usize {
        self.local_steps * frame.step_multiple
    }

    /// χ of a plan.
    fn repeated(&self, frame: Frame) -> f64 {
        let bytes = self.profile.device.memory.get(&frame.base_format.activations());
        let examples = self.profile.examples as f64;
        let all_texts =
            examples * self.profile.lengths.mean * bytes.map_or(0.0, |bytes| bytes.layer_input_bytes_per_token);
        let lookups = (self.steps(frame) * frame.batch_size) as f64;
        if all_texts > 0.0 && lookups > examples {
            (1.0 - examples / lookups) * (self.profile.cache_bytes as f64 / all_texts).min(1.0)
        } else {
            0.0
        }
    }

    /// Bytes that the silo sends and receives in a round.
    pub fn data(&self, load: &AdapterLoad) -> f64 {
        self.moved(load).iter().sum()
    }

    /// Bytes to the silo and from it.
    fn moved(&self, load: &AdapterLoad) -> [f64; 2] {
        let up = load.trained_values + load.head_values;
        let [down_names, up_names] = beside_values(self.model);
        [self.value_bytes * (up + load.applied_values) + down_names, self.value_bytes * up + up_names]
    }

    /// Bytes a unit of rank in the layer that has most of them, when the inside of one layer lives at a time; 0 when all
    /// ranks count alike.
    pub(super) fn bytes_per_largest_rank(&self, frame: Frame) -> Option<f64> {
        let bytes = self.profile.device.memory.get(&frame.base_format.activations())?;
        let tokens = self.profile.lengths.large_batch(frame.batch_size);
        Some(if frame.recompute { tokens * bytes.adapter_bytes_per_token_rank } else { 0.0 })
    }

    /// The load of `ranks` under the worst case of the merged adapter.
    pub fn load(&self, ranks: &BTreeMap<WeightId, usize>) -> AdapterLoad {
        AdapterLoad::planned(self.model, ranks, self.server_rank)
    }

    /// [`CostModel::load`] of a plan that may train layers from `lowest` upwards, which is no higher than the lowest of `ranks`.
    pub(super) fn load_from(&self, ranks: &BTreeMap<WeightId, usize>, lowest: usize) -> AdapterLoad {
        let mut load = self.empty_load(lowest);
        for candidate in &self.model.candidates {
            if let Some(&rank) = ranks.get(&candidate.id) {
                load = self.raised(&load, candidate, 0, rank);
            }
        }
        load
    }

    /// The load of a plan that may train layers from `lowest` upwards and trains none of their weights yet.
    pub(super) fn empty_load(&self, lowest: usize) -> AdapterLoad {
        let mut load = AdapterLoad::starting_at(self.model, lowest);
        for candidate in &self.model.candidates {
            load.add(candidate, 0, capped(candidate, self.server_rank));
        }
        load
    }

    /// `load` with the rank of `candidate`, now `from`, raised to `to`.
    pub(super) fn raised(
        &self,
        load: &AdapterLoad,
        candidate: &CandidateWeight,
        from: usize,
        to: usize,
    ) -> AdapterLoad {
        let applied = |rank: usize| capped(candidate, self.server_rank).saturating_sub(rank);
        let (before, after) = (applied(from), applied(to));
        let mut raised = load.clone();
        raised.trained_values += candidate.parameters(to) as f64 - candidate.parameters(from) as f64;
        raised.applied_values += candidate.parameters(after) as f64 - candidate.parameters(before) as f64;
        raised.layer_ranks[candidate.layer] += to as f64 - from as f64;
        raised.applied_ranks += after as f64 - before as f64;
        if candidate.layer >= load.lowest {
            raised.applied_ranks_above += after as f64 - before as f64;
        }
        raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedpipe_testkit::{toy_model, toy_profile};

    /// Every number by hand for the testkit's toy model: 2 layers with one 4×4 weight each, a head of 8 values, and a
    /// profile of round numbers; rank 2 on the upper weight, server rank 3, batch 2 of 10 tokens, 5 steps, speed 1/2.
    #[test]
    fn every_term_is_what_a_hand_calculation_says() {
        let (model, profile) = (toy_model(), toy_profile("a"));
        let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
        let load = cost.load(&[("layer.1.query".into(), 2)].into());
        // d = 8, r = 2 → 16 trained; q = 1 above and 3 below → 32 applied; head 8.
        assert_eq!((load.lowest, load.trained_values, load.applied_values), (1, 16.0, 32.0));
        assert_eq!(
            (load.layer_ranks.as_slice(), load.applied_ranks, load.applied_ranks_above),
            (&[0.0, 2.0][..], 4.0, 1.0)
        );
        let frame = Frame { batch_size: 2, step_multiple: 1, base_format: BaseFormat::F32, recompute: false };
        let (memory, time) = cost.round(&load, frame).unwrap();
        assert_eq!(
            memory,
            MemoryTerms {
                base: 4000.0,
                adapters: 4.0 * 56.0,
                gradients: 4.0 * 24.0,
                optimizer: 8.0 * 24.0,
                activations: 20.0 * (100.0 * 1.0 + 1.0 * 2.0),
                workspace: 20.0 * 50.0 + 1000.0,
            }
        );
        // 100 tokens; forward 1 ms, backward 2 ms, a rank 3 ms, a step 10 ms; all twice at speed 1/2.
        close(time.forward, 2.0 * 100.0 * 2.0 * 1e-3);
        close(time.backward, 2.0 * 100.0 * 1.0 * 2e-3);
        close(time.adapter, 2.0 * 100.0 * 3e-3 * (2.0 + 4.0 / 3.0 + 1.0 / 3.0));
        close(time.fixed, 2.0 * 5.0 * 10e-3);
        // Two weights of 13 letters, by two factors each up and four down, and the head's 17; 112 bytes a tensor, 32 a message.
        close(time.upload, (4.0 * 24.0 + 4.0 * 125.0 + 129.0 + 32.0) * 8.0 / 1e6);
        close(time.download, (4.0 * 56.0 + 8.0 * 125.0 + 129.0 + 32.0) * 8.0 / 1e6);
        let nobodys = Frame { base_format: BaseFormat::Nf3, ..frame };
        assert!(cost.round(&load, nobodys).is_none(), "a format that nobody measured has no cost");
    }

    fn close(x: f64, y: f64) {
        assert!((x - y).abs() < 1e-12, "{x} is not {y}");
    }

    /// The same toy, both layers adapted at ranks 3 and 2: the inputs of two layers and the inside of one instead of the
    /// inside of two, and of the adapters those of rank 3.
    #[test]
    fn recomputation_trades_memory_for_time_as_a_hand_calculation_says() {
        let (model, profile) = (toy_model(), toy_profile("a"));
        let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
        let load = cost.load(&[("layer.0.query".into(), 3), ("layer.1.query".into(), 2)].into());
        let of = |base_format, recompute| {
            cost.round(&load, Frame { batch_size: 2, step_multiple: 1, base_format, recompute }).unwrap()
        };
        for (format, input_bytes) in [(BaseFormat::F32, 10.0), (BaseFormat::Nf4, 5.0)] {
            let ((kept, time), (again, longer)) = (of(format, false), of(format, true));
            assert_eq!(kept.activations, 20.0 * (2.0 * 100.0 + 5.0));
            assert_eq!(again, MemoryTerms { activations: 20.0 * (2.0 * input_bytes + 100.0 + 3.0), ..kept });
            // 100 tokens at half speed: two layers once more at 1 ms, and a third of the adapters' 3 ms: 5 ranks train and
            // one of the upper weight is only applied.
            close(longer.backward - time.backward, 2.0 * 100.0 * 2.0 * 1e-3);
            close(longer.adapter - time.adapter, 2.0 * 100.0 * 3e-3 * (5.0 + 1.0) / 3.0);
            assert_eq!(TimeTerms { backward: time.backward, adapter: time.adapter, ..longer }, time);
        }
    }

    /// The first toy once more with 5 texts, which ten lookups a round go through twice: half the tokens find what the lower
    /// layer and its applied ranks make of them, a quarter where the disk holds half the texts (of 5 · 10 tokens · 10 bytes).
    #[test]
    fn texts_that_come_again_within_a_round_pass_the_frozen_layers_once() {
        let model = toy_model();
        let terms = |cache_bytes: u64, ranks: &BTreeMap<WeightId, usize>| {
            let profile = SiloProfile { examples: 5, cache_bytes, ..toy_profile("a") };
            let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
            let frame = Frame { batch_size: 2, step_multiple: 1, base_format: BaseFormat::F32, recompute: false };
            cost.round(&cost.load(ranks), frame).unwrap()
        };
        let upper = [("layer.1.query".into(), 2)].into();
        let (memory, without) = terms(0, &upper);
        for (cache_bytes, known) in [(500, 0.5), (1 << 30, 0.5), (250, 0.25)] {
            let (same, time) = terms(cache_bytes, &upper);
            assert_eq!(same, memory);
            close(time.forward, 2.0 * 100.0 * (2.0 - known) * 1e-3);
            close(time.adapter, 2.0 * 100.0 * 3e-3 * (2.0 + (4.0 - known * 3.0) / 3.0 + 1.0 / 3.0));
            assert_eq!(TimeTerms { forward: without.forward, adapter: without.adapter, ..time }, without);
        }
        let both = [("layer.0.query".into(), 1), ("layer.1.query".into(), 2)].into();
        assert_eq!(terms(500, &both), terms(0, &both));
        // A head alone: of two layers the last is computed for some tokens only, and so is not kept.
        close(terms(500, &BTreeMap::new()).1.forward, 2.0 * 100.0 * 1.5 * 1e-3);
    }

    #[test]
    fn a_head_alone_has_nothing_to_compute_again() {
        let (model, profile) = (toy_model(), toy_profile("a"));
        let cost = CostModel { model: &model, profile: &profile, server_rank: 0, local_steps: 5, value_bytes: 4.0 };
        let of = |recompute| {
            cost.round(
                &AdapterLoad::head_only(&model),
                Frame { batch_size: 2, step_multiple: 1, base_format: BaseFormat::F32, recompute },
            )
        };
        assert_eq!(of(true), of(false));
    }

    #[test]
    fn raising_ranks_one_by_one_gives_the_load_of_the_whole_plan() {
        let (model, profile) = (toy_model(), toy_profile("a"));
        let cost = CostModel { model: &model, profile: &profile, server_rank: 3, local_steps: 5, value_bytes: 4.0 };
        let mut load = cost.empty_load(0);
        load = cost.raised(&load, &model.candidates[0], 0, 2);
        load = cost.raised(&load, &model.candidates[1], 0, 2);
        load = cost.raised(&load, &model.candidates[1], 2, 4);
        assert_eq!(load, cost.load(&[("layer.0.query".into(), 2), ("layer.1.query".into(), 4)].into()));
    }
}
