"""PMET (Li et al. 2023; xpq-tech/PMET): MEMIT with two vectors optimised, one of them written.

δ_mlp on the MLP's and δ_attn on the attention's output of the last edited layer are optimised
together; only the MLP's is written. The residual is measured on that MLP output, which the lower
layers' updates do not reduce, and falls to the layers as R/√(m − i).
"""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

from pydantic import Field

from .compute_z import Site, optimise
from .memit import MEMIT


class PMET(MEMIT):
    """nll_loss_factor: factor on the nll; a tenth of it while the target is the argmax everywhere."""

    of_stream: ClassVar[bool] = False

    nll_loss_factor: float = Field(1.0, gt=0)

    def _optimise(self, model, requests):
        z_layer = self.layers[-1]
        places = (model.mlp_out(z_layer), model.attn_out(z_layer))
        site = Site(z_layer, self._loss_layer(model), places, model.mlp_out(self.layers[0]), inside=True)
        return optimise(model, requests, site, self, scaled_nll=True)

    def _read(self, model):
        return model.mlp_out(self.layers[-1])

    def _share(self, i: int) -> float:
        return 1 / sqrt(len(self.layers) - i)
