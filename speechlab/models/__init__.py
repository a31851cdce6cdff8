"""One architecture a file; `SYSTEMS` names each with its configuration and its class."""

from speechlab.models.cleanumamba import CleanUMamba, CleanUMambaConfig

SYSTEMS = {"cleanumamba": (CleanUMambaConfig, CleanUMamba)}
