# Every target creates .venv and installs what it needs; all are safe to run again.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed

.PHONY: setup demo test check bench soak

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(PY) -m trainer train demo --run runs/demo
	$(PY) -m trainer evaluate runs/demo
	@echo
	@echo 'Next, on images of your own (a folder or an archive with train/ and val/ of class folders):'
	@echo '  .venv/bin/earlybird train imagenet-msdnet-step4 --data PATH --set optim.update_batch=64'

test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The commands of docs/benchmarks.md, and what they print into it; ONLY=REGEX takes some of them.
bench: $(STAMP)
	$(PY) docs/bench.py docs/benchmarks.md --only '$(ONLY)'

FAULTS := tests/test_fuzz.py tests/trainer/test_any_setting.py $(addprefix tests/trainer/run/test_, \
  preemption.py elastic.py health.py watchdog.py checkpoint_faults.py disk_faults.py)

soak: $(STAMP)
	$(PY) -m pytest -q $(FAULTS)
	$(PY) tests/soak.py nodes --number 3
	$(PY) tests/soak.py scrapes
	$(PY) tests/soak.py saves
	$(PY) tests/soak.py kills --number 100
