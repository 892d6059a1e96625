use super::*;
use crate::fixture;
use fedpipe_core::CandidateWeight;

const LOOK: Look = Look { width: 80, colour: false };

/// 32 layers of seven kinds, as Llama has them.
fn large() -> ModelSpec {
    let kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let candidate = |layer: usize, kind: &str| CandidateWeight {
        id: WeightId::new(format!("model.layers.{layer}.{kind}")),
        layer,
        kind: kind.into(),
        inputs: 64,
        outputs: 64,
    };
    let candidates = (0..32).flat_map(|layer| kinds.map(|kind| candidate(layer, kind)));
    ModelSpec { layers: 32, candidates: candidates.collect(), ..fixture::model() }
}

/// The fixture's silos over the large model: the upper half trains, at one of four ranks.
fn large_plan(model: &ModelSpec, silos: usize) -> Plan {
    let mut plan = fixture::state().plan;
    let shared = plan.silos.values().next().unwrap().clone();
    let silo = |index: usize| {
        let name = format!("silo-{index:02}");
        let trained = model.candidates.iter().filter(|candidate| candidate.layer >= 4 * (index % 5));
        let ranks = trained.map(|candidate| (candidate.id.clone(), 2 << ((candidate.layer / 8 + index) % 4)));
        let plan = SiloPlan { silo: name.as_str().into(), ranks: ranks.collect(), ..shared.clone() };
        (name.as_str().into(), plan)
    };
    plan.silos = (0..silos).map(silo).collect();
    plan
}

fn large_importance(model: &ModelSpec) -> BTreeMap<WeightId, f64> {
    let raw = |candidate: &CandidateWeight| ((candidate.layer + 1) * (1 + candidate.kind.len() % 3)) as f64;
    let sum: f64 = model.candidates.iter().map(raw).sum();
    model.candidates.iter().map(|candidate| (candidate.id.clone(), raw(candidate) / sum)).collect()
}

#[test]
fn a_small_model_shows_its_numbers() {
    let (state, model) = (fixture::state(), fixture::model());
    let figures = [importance(&model, &state.importance), ranks(&model, &state.plan)];
    insta::assert_snapshot!(figures.map(|figure| text(&figure, LOOK)).join("\n"));
}

#[test]
fn a_large_model_stays_readable() {
    let model = large();
    let figures = [importance(&model, &large_importance(&model)), ranks(&model, &large_plan(&model, 4))];
    let drawn = figures.map(|figure| text(&figure, LOOK)).join("\n");
    assert!(drawn.lines().all(|line| line.chars().count() <= LOOK.width && !line.contains('\u{1b}')), "{drawn}");
    insta::assert_snapshot!(drawn);
}

#[test]
fn a_terminal_of_any_width_shows_every_weight() {
    let model = large();
    let figure = ranks(&model, &large_plan(&model, 4));
    for width in [0, 1, 20, 33, 80, 400] {
        let drawn = text(&figure, Look { width, colour: false });
        // Those of the legend are not in a line of a kind.
        let cells = drawn.lines().filter(|line| line.contains("_proj")).flat_map(str::chars);
        let cells = cells.filter(|c| ('▁'..='█').contains(c) || *c == '·').count();
        assert_eq!(cells, 4 * 32 * 7, "{width}\n{drawn}");
    }
}

#[test]
fn colours_add_nothing_but_colours() {
    let (state, model) = (fixture::state(), fixture::model());
    let figure = ranks(&model, &state.plan);
    let coloured = text(&figure, Look { colour: true, ..LOOK });
    assert!(coloured.contains("\u{1b}[38;5;220m█\u{1b}[0m16"), "{coloured:?}");
    assert_eq!(console::strip_ansi_codes(&coloured), text(&figure, LOOK));
}

#[test]
fn beyond_twelve_silos_the_figure_says_how_many_more() {
    let model = large();
    let figure = ranks(&model, &large_plan(&model, 15));
    let drawn = text(&figure, LOOK);
    assert!(drawn.contains("silo-11") && !drawn.contains("silo-12") && drawn.ends_with("… and 3 more silos.\n"));
    let svg = stand_alone(&[figure]);
    assert!(svg.contains("silo-11") && !svg.contains("silo-12") && svg.matches("… and 3 more silos.").count() == 2);
    assert_eq!(ranks(&model, &large_plan(&model, 12)).note, None);
}

#[test]
fn the_scale_goes_from_the_least_rank_to_the_largest() {
    let (model, mut plan) = (fixture::model(), fixture::state().plan);
    let of = |plan: &Plan| ranks(&model, plan).legend;
    let legend =
        |steps: &[(usize, &str)]| steps.iter().map(|(step, text)| (*step, text.to_string())).collect::<Vec<_>>();
    assert_eq!(of(&plan), legend(&[(2, "1"), (4, "2"), (5, "4"), (7, "8"), (8, "16")]));
    let silo = plan.silos.values_mut().next().unwrap();
    silo.ranks.values_mut().enumerate().for_each(|(index, rank)| *rank = index + 1);
    assert_eq!(of(&plan).len(), STEPS);
    // 16 of 18 are 7.1 of 8 steps.
    assert_eq!(of(&plan).last().unwrap(), &(8, "16–18".to_string()));
    plan.silos.values_mut().for_each(|silo| silo.ranks.clear());
    assert_eq!(of(&plan), []);
}

#[test]
fn the_least_share_is_seen_and_none_is_not() {
    let model = fixture::model();
    let ids: Vec<WeightId> = model.candidates.iter().map(|candidate| candidate.id.clone()).collect();
    let shares = [(ids[0].clone(), 1e-9), (ids[1].clone(), 1.0), (ids[2].clone(), 0.0), (ids[3].clone(), f64::NAN)];
    let figure = importance(&model, &shares.into());
    let step = |row: usize| figure.maps[0].cells[row][0].as_ref().map(|cell| cell.step);
    assert_eq!([step(0), step(1), step(2), step(3)], [Some(1), Some(8), None, None]);
    let nothing = importance(&model, &BTreeMap::new());
    assert!(nothing.legend.is_empty() && !stand_alone(&[nothing]).contains("NaN"));
    let empty = ModelSpec { candidates: vec![], ..model };
    assert!(text(&importance(&empty, &BTreeMap::new()), LOOK).contains("no weights"));
    assert!(stand_alone(&[importance(&empty, &BTreeMap::new())]).contains("no weights"));
}

#[test]
fn weights_of_one_kind_in_one_layer_have_rows_of_their_own() {
    let mut model = fixture::model();
    model.candidates.truncate(1);
    let twin = CandidateWeight { id: "decoder.0.query".into(), ..model.candidates[0].clone() };
    model.candidates.push(twin);
    let grid = Grid::of(&model);
    assert_eq!(
        (grid.kinds, grid.places[&"decoder.0.query".into()]),
        (vec!["query".into(), "query (2)".into()], (1, 0))
    );
}

#[test]
fn names_from_outside_break_no_drawing() {
    let evil = "q</text></svg><script>alert(1)</script>&\"'\u{1b}[2J\u{0}\u{ffff}\n";
    let mut model = fixture::model();
    for candidate in &mut model.candidates {
        candidate.kind = format!("{}{evil}", candidate.kind);
        candidate.id = WeightId::new(format!("{}{evil}", candidate.id));
    }
    let mut state = fixture::state();
    let renamed = |weight: &WeightId| WeightId::new(format!("{weight}{evil}"));
    state.importance = state.importance.iter().map(|(weight, share)| (renamed(weight), *share)).collect();
    for silo in state.plan.silos.values_mut() {
        silo.ranks = silo.ranks.iter().map(|(weight, rank)| (renamed(weight), *rank)).collect();
    }
    let figures = [importance(&model, &state.importance), ranks(&model, &state.plan)];
    let svg = stand_alone(&figures);
    assert!(svg.contains("bert.encoder.layer.0.attention.self.queryq&lt;/text&gt;"), "the tooltips");
    assert!(!svg.contains("<script") && svg.matches("</svg>").count() == 1);
    assert!(svg.trim_end().chars().all(|c| !c.is_control() || c == '\n'), "XML forbids the rest");
    // The style sheet has lines of its own; no text has.
    assert_eq!(svg.trim_end().matches('\n').count(), STYLE.matches('\n').count());
    assert!(!svg.contains('\u{ffff}'));
    for figure in &figures {
        assert!(!inline(figure).into_string().contains("<script"));
        assert!(!text(figure, LOOK).contains('\u{1b}'), "a name moves the cursor");
    }
}

/// Relative luminance, WCAG 2.2.
fn luminance(colour: &str) -> f64 {
    let channel = |at: usize| {
        let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5)
}

/// Steps that differ in lightness alone are told apart by all eyes; numbers on them have WCAG's contrast of 4.5.
#[test]
fn the_colours_are_read_on_light_and_dark() {
    let (light, dark) = STYLE.split_once("@media").unwrap();
    for (style, darker) in [(light, true), (dark, false)] {
        let colour = |name: &str| style.split(&format!("--{name}: ")).nth(1).unwrap()[..7].to_string();
        let steps: Vec<f64> = (1..=STEPS).map(|step| luminance(&colour(&format!("s{step}")))).collect();
        assert!(steps.windows(2).all(|pair| (pair[1] < pair[0]) == darker && (pair[1] / pair[0]).ln().abs() > 0.2));
        for step in 1..=STEPS {
            let (ground, ink) = (steps[step - 1], luminance(&colour(&format!("i{step}"))));
            let contrast = (ground.max(ink) + 0.05) / (ground.min(ink) + 0.05);
            assert!(contrast >= 4.5, "step {step}: {contrast:.2}");
        }
    }
}
