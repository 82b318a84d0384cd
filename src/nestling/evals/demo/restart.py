"""The other side of the restart check: a new process loads a model and a memory, and writes what it predicts."""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import save_file

from nestling.continual import Learner
from nestling.models import HopeForCausalLM
from nestling.train import byte_tokenizer

if __name__ == "__main__":
    folder, memory, answer = sys.argv[1:]
    torch.set_num_threads(1)
    learner = Learner(HopeForCausalLM.from_pretrained(folder), byte_tokenizer())
    learner.load(memory)
    save_file({"losses": learner.evaluate(torch.tensor(json.load(sys.stdin)))}, answer)
