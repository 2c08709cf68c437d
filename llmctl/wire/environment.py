"""Names of the environment variables that every rank finds, the user's own scripts included."""

from __future__ import annotations

RUN_ID = "LLMCTL_RUN_ID"
RUN_DIR = "LLMCTL_RUN_DIR"
ATTEMPT = "LLMCTL_ATTEMPT"
ATTEMPT_DIR = "LLMCTL_ATTEMPT_DIR"
HOST = "LLMCTL_HOST"
METRICS = "LLMCTL_METRICS"
DATA_URI = "LLMCTL_DATA_URI"
DATA_MIX = "LLMCTL_DATA_MIX"
CHECKPOINT_URI = "LLMCTL_CHECKPOINT_URI"
CACHE_DIR = "LLMCTL_CACHE_DIR"
PG_TIMEOUT_S = "LLMCTL_PG_TIMEOUT_S"
BACKEND = "LLMCTL_BACKEND"
STORES = "LLMCTL_STORES"
INFER_TOKEN = "LLMCTL_INFER_TOKEN"  # noqa: S105 - a name
INFER_API_KEY = "LLMCTL_INFER_API_KEY"

MEANING = {
    RUN_ID: "the run's id; also how the agent finds every process of the run",
    RUN_DIR: "the run's directory on this host",
    ATTEMPT: "number of the attempt, from 1",
    ATTEMPT_DIR: "the attempt's directory: logs and metrics",
    HOST: "this host's name in the inventory",
    METRICS: "file to append metric lines to; `llmctl status` shows them",
    DATA_URI: "`data.uri` of the job",
    DATA_MIX: '`data.mix` of the job as JSON: `[{"uri": ..., "weight": ...}]`',
    CHECKPOINT_URI: "where checkpoints go: `checkpoint.uri`, or a folder of the run directory",
    CACHE_DIR: "a folder for verified copies of remote data",
    PG_TIMEOUT_S: "the job's process-group timeout, for `init_process_group(timeout=)`",
    STORES: "entries of your `stores.yaml` that the job's URIs name, as JSON; a secret, never on a disk",
    INFER_TOKEN: "by which the processes of an inference run know each other; a secret, never on a disk",
    INFER_API_KEY: "what clients of `llmctl infer serve` must show; a secret, never on a disk",
    BACKEND: "`nccl` or `gloo`: what the job asked for, or what its hosts can do",
}
