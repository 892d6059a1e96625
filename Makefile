# The daily commands. `make` alone lists them.

SHELL := /bin/bash
PYTHON ?= python3
# `make interop` checks this run; left empty, it makes a short one first.
RUN ?=
FUZZ_SECONDS ?= 60
# One stamp for the whole invocation: every demo gets a run folder of its own, and nothing is ever overwritten.
STAMP := $(shell date +%Y%m%d-%H%M%S)
DEMO_RUN := runs/r8-demo-$(STAMP)
INTEROP_RUN := $(if $(RUN),$(RUN),runs/interop-$(STAMP))
FIXTURES := crates/testkit/fixtures/encoders
ENCODERS := roberta distilbert
ENCODER_RUN := runs/interop-$(STAMP)
REFERENCE := .venv-interop/bin/python
MODEL := assets/models/all-MiniLM-L6-v2

.DEFAULT_GOAL := help
.PHONY: help demo test asan lint doc deny interop interop-lm golden assets reference fuzz clean ci bench

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: assets ## Fine-tune the demo model across four unequal silos (about three minutes on two cores, and building)
	cargo build --release -p fedpipe
	target/release/fedpipe run examples/r8.toml --output $(DEMO_RUN)
	@echo
	@echo "report   $(DEMO_RUN)/report.html"
	@echo "adapter  $(DEMO_RUN)/adapter  (Hugging Face PEFT)"
	@echo "try it   target/release/fedpipe predict $(DEMO_RUN) --text 'crude oil prices rose again'"

test: assets ## Run all tests
	cargo test --workspace
	$(PYTHON) -m unittest discover --start-directory bench

asan: ## Run the kernels' tests under AddressSanitizer
	scripts/asan.sh

lint: ## Check format and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

doc: ## Build the API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

deny: ## Check the dependencies' licences, sources and advisories
	PYTHON=$(PYTHON) scripts/deny.sh

interop: assets reference ## Compare exports with PEFT, Transformers and llama.cpp's reader (RUN=runs/NAME for a run of yours)
	# With the tests, so that the dependencies have the features that `make test` built them with.
	cargo build --workspace --bins --tests
ifeq ($(RUN),)
	# Agreement does not depend on how long the run was, so one short round does.
	target/debug/fedpipe run examples/r8.toml --output $(INTEROP_RUN) \
		--set federation.rounds=1 --set training.local_steps=5
endif
	$(REFERENCE) scripts/interop.py $(INTEROP_RUN) --model $(MODEL) \
		--data assets/data/reuters-r8-test.tsv --fedpipe target/debug/fedpipe
	# Other heads and other names, over random models, whose logits differ little from text to text.
	for name in $(ENCODERS); do \
		target/debug/fedpipe run examples/r8.toml --output $(ENCODER_RUN)-$$name \
			--set model.path=$(FIXTURES)/$$name --set training.max_length=20 \
			--set federation.rounds=1 --set training.local_steps=200 --set training.learning_rate=6e-3 && \
		$(REFERENCE) scripts/interop.py $(ENCODER_RUN)-$$name --model $(FIXTURES)/$$name --tolerance 1e-5 \
			--data assets/data/reuters-r8-test.tsv --fedpipe target/debug/fedpipe || exit; \
	done

interop-lm: reference ## Compare a fine-tuned GGUF model with PEFT: logits and texts (RUN=runs/NAME DATA=FILE.csv)
	cargo build --release -p fedpipe
	cargo build --release -p fedpipe-model --example lm_logits
	$(REFERENCE) scripts/interop_lm.py $(RUN) --data $(DATA)

bench: assets reference ## Measure speed and memory beside PEFT and the machine's limit (QUICK=1: a short look; E2E=FILE: a decoder, too)
	$(PYTHON) bench/run.py $(if $(QUICK),--quick) $(if $(E2E),--e2e $(E2E))

golden: assets reference ## Make the golden test fixtures anew with PyTorch
	$(REFERENCE) scripts/golden_bert.py
	$(REFERENCE) scripts/golden_minilm.py
	$(REFERENCE) scripts/golden_encoders.py
	$(REFERENCE) scripts/golden_decoders.py
	$(REFERENCE) scripts/golden_sampling.py
	# Apart from the reference environment: PEFT would load it too, and try to fetch kernels with it.
	$(REFERENCE) -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --upgrade \
		--target .venv-golden bitsandbytes==0.50.2 gguf==0.19.0 pyarrow==26.0.1
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_parquet.py
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_nf4.py
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_int8.py
	$(REFERENCE) -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --upgrade \
		--target .venv-golden -r scripts/requirements-metrics.txt
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_metrics.py
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_gguf.py
	PYTHONPATH=.venv-golden $(REFERENCE) scripts/golden_chat.py

assets: ## Fetch the model and the data of the demo and the tests, once
	$(PYTHON) scripts/fetch_assets.py

reference: ## Make the Python environment of interop, bench and golden (2.4 GB to download), once
	PYTHON=$(PYTHON) scripts/python_env.sh

fuzz: ## Fuzz what reads bytes from outside, a minute each (FUZZ_SECONDS=300: longer)
	scripts/fuzz.sh $(FUZZ_SECONDS)

clean: ## Remove what was built and the Python environments; assets and runs stay
	cargo clean
	rm -rf .venv-deny .venv-golden .venv-interop fuzz/artifacts fuzz/corpus

ci: ## Run what CI runs
	bash .ci/run
