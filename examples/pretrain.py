"""Pre-train an elastic model: the same job as `poa pretrain`, as a script for launchers.

python examples/pretrain.py --config quickstart --max_steps 100
accelerate launch examples/pretrain.py --config quickstart --dataset_name my/images
torchrun --nproc-per-node 8 examples/pretrain.py --config vit_large --dataset_name my/images
"""

import sys

from poa_hf.cli import pretrain, run

if __name__ == "__main__":
    sys.exit(run(pretrain, sys.argv[1:]))
