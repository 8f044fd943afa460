#!/usr/bin/env bash
# Make the shipped checkpoint and test set anew: `make nano`, or recipes/nano/make.sh WORK.
# Interrupted, it goes on where it was: the corpus is made once, the training resumes from its checkpoint.
set -euo pipefail
work=${1:?usage: recipes/nano/make.sh WORK}
here=$(dirname "$0")
python=$here/../../.venv/bin/python

for engine in flite espeak-ng festival; do
    command -v "$engine" >/dev/null || {
        echo "$engine is missing; on Debian: apt-get install flite espeak-ng festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts" >&2
        exit 1
    }
done
[ -f "$work/corpus.jsonl" ] || "$python" "$here/corpus.py" "$work"
"$python" "$here/train.py" "$work"
"$python" "$here/package.py" "$work"
