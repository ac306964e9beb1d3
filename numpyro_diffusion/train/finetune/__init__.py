"""Fine-tuning with a reward: five routes to one tilted distribution."""

from .chain import Path as Path
from .chain import ReverseChain as ReverseChain
from .control import DirectBackprop as DirectBackprop
from .control import PathConsistency as PathConsistency
from .finetune import finetune as finetune
from .ppo import PPO as PPO
from .route import AbstractRoute as AbstractRoute
from .route import FinetuneResult as FinetuneResult
from .weighted import RewardWeighted as RewardWeighted
from .weighted import ValueWeighted as ValueWeighted
