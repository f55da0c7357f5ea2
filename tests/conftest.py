from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: the workers share the cores already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():  # before triton is imported: its kernels are interpreted where there is no GPU
    os.environ["TRITON_INTERPRET"] = "1"
