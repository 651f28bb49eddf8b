#!/usr/bin/env bash
# Makes the project that the tests of the tab Data show: three versions of a folder, a pipeline with metrics and plots, and an experiment.
#
#   web/tests/data-project.sh SLIPWAY FOLDER
set -euo pipefail
slipway=$(realpath "$1")
rm -rf "$2"
mkdir -p "$2/store"
cd "$2"
git init --quiet --initial-branch=main project
cd project
git config user.name "Ada Lovelace"
git config user.email ada@example.invalid
git config commit.gpgSign false
"$slipway" data init --quiet
"$slipway" data remote add -d store "$PWD/../store"

commit() {
  git add --all
  git commit --quiet --message "$1"
}

python3 - <<'PYTHON'
import pathlib, struct, zlib

def png(path, size, color):
    """A picture of a diagonal gradient."""
    rows = b"".join(b"\0" + bytes(min(255, (x + y) * 255 // (2 * size) + c) for x in range(size) for c in color) for y in range(size))
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))

for kind, color in (("cats", (0, 40, 90)), ("dogs", (80, 20, 0))):
    for i in range(12):
        png(pathlib.Path(f"images/{kind}/{i:02}.png"), 24 + i, color)
pathlib.Path("images/README.txt").write_text("Cats and dogs, photographed in 2026.\n")
rows = [f"images/cats/{i:02}.png,cat,{24 + i}" for i in range(12)] + [f"images/dogs/{i:02}.png,dog,{24 + i}" for i in range(12)]
pathlib.Path("labels.csv").write_text("file,label,width\n" + "\n".join(rows) + "\n")
PYTHON
cat > params.yaml <<'YAML'
train:
  lr: 0.1
  epochs: 8
YAML
cat > train.py <<'PYTHON'
import json, pathlib, re

text = pathlib.Path("params.yaml").read_text()
lr, epochs = float(re.search(r"lr: (.*)", text)[1]), int(re.search(r"epochs: (.*)", text)[1])
losses = [round(1 / (1 + lr * 10 * (i + 1)), 5) for i in range(epochs)]
bars = "".join(f'<rect x="{20 + 34 * i}" y="{180 - 160 * loss:.1f}" width="24" height="{160 * loss:.1f}" fill="#4a5bd4"/>' for i, loss in enumerate(losses))
pathlib.Path("losses.svg").write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {28 + 34 * epochs} 200"><script>document.title = "scripted"</script>{bars}</svg>\n')
pathlib.Path("curve.csv").write_text("epoch,loss\n" + "".join(f"{i},{loss}\n" for i, loss in enumerate(losses)))
pathlib.Path("metrics.json").write_text(json.dumps({"accuracy": round(1 - losses[-1] / 2, 4), "loss": losses[-1]}) + "\n")
pathlib.Path("model.bin").write_bytes(bytes(range(64)) * int(lr * 100))
PYTHON
cat > dvc.yaml <<'YAML'
stages:
  prepare:
    cmd: sort labels.csv > clean.csv
    deps: [labels.csv]
    outs: [clean.csv]
  features:
    cmd: ls -R images > features.txt
    deps: [images]
    outs: [features.txt]
  train:
    cmd: python3 train.py
    deps: [train.py, clean.csv, features.txt]
    params: [train.lr, train.epochs]
    outs: [model.bin]
    metrics:
      - metrics.json:
          cache: false
    plots:
      - losses.svg
  report:
    cmd: wc -c model.bin > report.txt
    deps: [model.bin]
    outs: [report.txt]
plots:
  - curve.csv:
      x: epoch
      y: loss
      title: Loss by epoch
YAML
"$slipway" data add --quiet images labels.csv
"$slipway" data repro --quiet
"$slipway" data push --quiet
commit "First cats and dogs"
git tag v1

rm images/dogs/00.png
cp images/cats/00.png images/cats/copy.png
mkdir images/birds && cp images/cats/11.png images/birds/00.png
echo "Also birds." >> images/README.txt
"$slipway" data add --quiet images
"$slipway" data repro --quiet
sed -i 's/lr: 0.1/lr: 0.2/' params.yaml
"$slipway" data repro --quiet
"$slipway" data push --quiet
commit "Birds, and a larger learning rate"
git tag v2
sed -i 's/lr: 0.2/lr: 0.4/' params.yaml
"$slipway" data repro --quiet
"$slipway" data exp save --quiet --name large-steps
git checkout --quiet -- .
"$slipway" data checkout --quiet --force

cp images/dogs/01.png images/dogs/new.png
"$slipway" data add --quiet images
commit "One more dog, not trained on yet"
