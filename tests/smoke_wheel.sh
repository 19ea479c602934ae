#!/bin/sh
# Builds the wheel, installs it in an environment of its own and meta-trains outside the checkout.
# Usage: smoke_wheel.sh PYTHON, an interpreter that has `build` and l2o's dependencies.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m build --wheel --outdir "$scratch" . > "$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; exit 1; }
"$python" -m pip install --quiet --no-deps --target "$scratch/site" "$scratch"/*.whl
cd "$scratch"
PYTHONPATH="$scratch/site" "$python" - <<'EOF'
import l2o, pathlib, l2o.tasks.quadratic
for module in (l2o, l2o.tasks.quadratic):
    assert pathlib.Path(module.__file__).is_relative_to(pathlib.Path.cwd()), module.__file__
for name in l2o.__all__:
    getattr(l2o, name)
EOF
PYTHONPATH="$scratch/site" "$python" -c 'from l2o.cli.main import run; run()' meta-train smoke --steps 5 --quiet
PYTHONPATH="$scratch/site" "$python" -c 'from l2o.cli.main import run; run()' suite --list > /dev/null
test -s runs/smoke/theta.safetensors
test -s runs/smoke/report.html
echo "wheel: ok"
