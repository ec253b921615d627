# Two commands do all the set-up on a machine that has Python and make: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
MODULATIONS := film adaln_zero cross_attention lora_gated joint_attention prompt_tokens
ENCODERS := conv_stem vit eva open_clip qwen2_5_vl convnext swin resnet

.PHONY: quickstart modulations encoders point-clouds digit-scenes stopping test lint types tests mutants attack nightly clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	touch $@

$(VENV): $(VENV)/.installed

# Both stages, and beside the second as many more supervised steps at its learning rate.
quickstart: $(VENV)/.installed
	$(BIN)/vilavt train quickstart
	$(BIN)/vilavt eval runs/quickstart
	$(BIN)/vilavt train quickstart run=runs/quickstart-more train.init_from=runs/quickstart train.steps=60 \
		train.warmup_steps=5 train.schedule=constant train.optimizer.lr=2e-5
	$(BIN)/vilavt eval runs/quickstart-more 'eval.arms=[modulated]'
	$(BIN)/vilavt rl quickstart
	$(BIN)/vilavt eval runs/quickstart-rl 'eval.arms=[modulated]'
	$(BIN)/vilavt compare --stages runs/quickstart runs/quickstart-more runs/quickstart-rl

# The recipes of recipes/modulation, trained, evaluated and put side by side: ten to fifteen minutes each on two cores.
modulations: $(MODULATIONS:%=modulation-%)
	$(BIN)/vilavt compare $(MODULATIONS:%=runs/modulation/%) --write runs/modulation/table.md

modulation-%: $(VENV)/.installed
	$(BIN)/vilavt train modulation/$*
	$(BIN)/vilavt eval runs/modulation/$*

# The recipes of recipes/encoders, one line apart: about five minutes each.
encoders: $(ENCODERS:%=encoder-%)
	$(BIN)/vilavt compare --encoders $(ENCODERS:%=runs/encoders/%) --write runs/encoders/table.md

encoder-%: $(VENV)/.installed
	$(BIN)/vilavt train encoders/$*
	$(BIN)/vilavt eval runs/encoders/$*

# The quickstart's road on point clouds, and what may be claimed of it.
point-clouds: $(VENV)/.installed
	$(BIN)/vilavt train point_clouds_close
	$(BIN)/vilavt train point_clouds
	$(BIN)/vilavt eval runs/point_clouds

# All families of the task, both stages: less than an hour on two cores.
digit-scenes: $(VENV)/.installed
	$(BIN)/vilavt train digit_scenes
	$(BIN)/vilavt eval runs/digit_scenes
	$(BIN)/vilavt rl digit_scenes
	$(BIN)/vilavt eval runs/digit_scenes-rl
	$(BIN)/vilavt compare --stages runs/digit_scenes runs/digit_scenes-rl

# One run under every stopping policy, and accuracy against cost: twenty minutes behind the quickstart's.
stopping: $(VENV)/.installed
	test -d runs/quickstart || $(BIN)/vilavt train quickstart
	$(BIN)/vilavt train stopping/base
	$(BIN)/vilavt train stopping/learned_halt
	$(BIN)/python benchmarks/stopping.py runs/stopping/base --halt runs/stopping/learned_halt --json runs/stopping/curve.json

test: lint types tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# One thread a worker: torch's own threads would fight the test workers for the cores. The tests of a file go to one
# worker, which makes what they share once.
tests: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not nightly'

# Changes the arithmetic one place at a time; a test must fail each time. An hour on two cores.
mutants: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,demo,mutation]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutation/run.py

# Hostile inputs of every kind; the counts go into docs/reliability.md. Several hours on two cores.
attack: $(VENV)/.installed
	for name in recipes files outputs checkpoints kills devices; do \
		OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attack/$$name.py --json runs/attack/$$name.json || exit 1; \
	done
	$(BIN)/python benchmarks/attack/report.py runs/attack/*.json

# One after another even under `make -j`: each takes all cores.
nightly: $(VENV)/.installed
	$(MAKE) -j1 quickstart modulations digit-scenes encoders point-clouds stopping
	$(BIN)/pytest -m nightly
	$(BIN)/pytest -m hypothesis --hypothesis-profile nightly

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find toolkit components tests -name __pycache__ -type d -prune -exec rm -rf {} +
