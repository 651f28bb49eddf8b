#!/usr/bin/env bash
# Runs everything that needs a real NVIDIA GPU, in under ten minutes: inventory, stack, all benchmarks, and
# PyTorch's matmul and copy for comparison. Results go to FOLDER (default bench/gpu/results).
#
#   bench/gpu/on-gpu.sh [FOLDER]
#
# Needs a built target/release/slipway, a driver, and libcublas and libnvrtc in the loader's path; the copies
# inside PyTorch's wheels work too. Missing parts are reported, not skipped silently.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-bench/gpu/results}
slipway=target/release/slipway
mkdir -p "$out"

libraries=$(python3 - <<'PY' 2>/dev/null
import glob, os, site, sys
folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
found = {os.path.dirname(f) for p in folders if p for f in glob.glob(os.path.join(p, "nvidia/*/lib/lib*.so*"))}
print(":".join(sorted(found)))
PY
)
export LD_LIBRARY_PATH="${libraries}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export SLIPWAY_HOME; SLIPWAY_HOME=$(mktemp -d)
trap 'rm -rf "$SLIPWAY_HOME"' EXIT

name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 | tr ' A-Z' '-a-z' | sed 's/^nvidia-//')
name=${name:-unknown}
echo "== $name"
"$slipway" gpu stack; "$slipway" gpu ls -o wide
"$slipway" gpu show -o json > "$out/$name-inventory.json"
"$slipway" gpu topology
echo "== time to read the GPUs: slipway, nvidia-smi"
python3 - "$slipway" <<'PY'
import subprocess, sys, time
def best(command):
    seconds = []
    for _ in range(5):
        t = time.perf_counter(); subprocess.run(command, capture_output=True); seconds.append(time.perf_counter() - t)
    return min(seconds)
a, b = best([sys.argv[1], "gpu", "ls", "-o", "json"]), best(["nvidia-smi", "-q"])
print(f"slipway {a*1e3:.1f} ms, nvidia-smi -q {b*1e3:.1f} ms: {b/a:.1f}x")
PY
echo "== benchmarks"
"$slipway" gpu bench --report "$out/$name.json"
"$slipway" gpu roofline -o svg > "$out/$name-roofline.svg"
echo "== PyTorch on the same GPU"
python3 - "$out/$name.json" <<'PY'
import json, sys
try:
    import torch
except ImportError:
    sys.exit("PyTorch is missing, so rates are not compared with it")
report = json.load(open(sys.argv[1]))
def measure(work, amount, times=10):
    work(); torch.cuda.synchronize(); rates = []
    for _ in range(times):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); [work() for _ in range(5)]; b.record(); torch.cuda.synchronize()
        rates.append(5 * amount / (a.elapsed_time(b) / 1e3))
    return sorted(rates)[len(rates) // 2]
below = 0
for figure in report["figures"]:
    if figure["device"] != "gpu 0":
        continue
    if figure["what"] == "gemm" and figure["size"] >= 4096 and figure["precision"] in ("fp32", "tf32", "fp16", "bf16"):
        kind = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[figure["precision"]]
        torch.backends.cuda.matmul.allow_tf32 = figure["precision"] == "tf32"
        n = figure["size"]
        x, y = torch.randn(n, n, device="cuda").to(kind), torch.randn(n, n, device="cuda").to(kind)
        z = torch.empty(n, n, device="cuda", dtype=kind)
        theirs, minimum = measure(lambda: torch.matmul(x, y, out=z), 2 * n**3 / 1e12), 0.98
    elif figure["what"].endswith(" copy") and figure["what"].split()[0] in ("HBM", "GDDR"):
        x = torch.randn(1 << 28, device="cuda"); y = torch.empty_like(x)
        theirs, minimum = measure(lambda: y.copy_(x), 2 * x.numel() * 4 / 1e9), 0.95
    else:
        continue
    share = figure["median"] / theirs
    below += share < minimum
    print(f"{figure['what']} {figure.get('precision', '')} {figure.get('size', '')}: slipway {figure['median']:.1f}, PyTorch {theirs:.1f} {figure['unit']}: {share:.1%}{'' if share >= minimum else '  BELOW ' + format(minimum, '.0%')}")
sys.exit(1 if below else 0)
PY
