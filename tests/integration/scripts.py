"""Training scripts of other people: they know torchrun's environment and nothing of llmctl."""

from __future__ import annotations

DDP = '''
"""An ordinary torchrun script: env:// rendezvous, DDP, rank-0 printing."""
import argparse, os, sys, traceback
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fail-rank", type=int, default=-1)
    args = parser.parse_args()
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DDP(torch.nn.Linear(4, 1))
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(args.steps):
        x = torch.full((2, 4), float(rank + 1))
        loss = model(x).pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
        if rank == args.fail_rank and step == 1:
            raise RuntimeError(f"rank {rank} has had enough")
        print(f"step {step} rank {rank}/{world} loss {loss.item():.4f}", flush=True)
    if rank == 0:
        torch.save(model.module.state_dict(), "model.pt")
        print("saved in", os.getcwd(), "local", os.environ["LOCAL_RANK"], flush=True)

dist.init_process_group("gloo")
code = 0
try:
    main()
    dist.destroy_process_group()
except Exception:
    traceback.print_exc()
    code = 1
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # torch 2.13 with gloo now and then aborts in the interpreter's own exit, by hand as well
'''

SLEEPER = '''
"""Starts fast, needs no torch, works until it is stopped."""
import os, sys, time
rank = os.environ["RANK"]
for n in range(100000):
    print(f"tick {n} of {rank}", flush=True)
    time.sleep(0.1)
'''

ONE_FAILS = '''
"""Rank 1 ends badly; rank 0 works on as if nothing were."""
import os, sys, time
if os.environ["RANK"] == "1":
    print("about to fail", flush=True)
    raise ValueError("bad sample 17")
time.sleep(600)
'''
