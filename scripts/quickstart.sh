#!/usr/bin/env bash
# From a fresh clone to a trained prompt: install, train, compare with zero-shot, predict a picture, report.
started=$SECONDS
source "$(dirname "$0")/environment.sh" report
installed=$SECONDS

run=runs/quickstart
if [ -e "$run/prompt.json" ]; then
    echo "Already trained: $run (delete the folder to train again)."
    .venv/bin/mmprompt eval "$run"
else
    resume=()
    [ -d "$run/checkpoint" ] && resume=(--resume)
    .venv/bin/mmprompt train --out "$run" "${resume[@]}"
fi
trained=$SECONDS
.venv/bin/mmprompt predict "$run" examples/scene.png
echo
echo "Seconds: $((installed - started)) to install, $((trained - installed)) to train, measure and report, $((SECONDS - trained)) to load the prompt and predict."
cat <<'NEXT'

Try next, with pictures of your own in a folder for each class:
  .venv/bin/mmprompt train --data my/drawings
  .venv/bin/mmprompt backbones get photo
  .venv/bin/mmprompt train --data my/photos --backbone photo
NEXT
