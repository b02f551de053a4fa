"""PMET (Li et al. 2023; xpq-tech/PMET): MEMIT with two vectors optimised, one of them written. δ_mlp on the MLP's and
δ_attn on the attention's output of the last edited layer are optimised together; only the MLP's is written. The
residual is measured on that MLP output and falls to the layers as R/√(m − i). While the target is the argmax everywhere
its nll counts a tenth, and the optimisation stops there once kl_factor·KL ≤ 0.01."""

from math import sqrt

import torch
from pydantic import Field

from .engine import Site
from .memit import MEMIT

KL_STOP = 0.01


class PMET(MEMIT):
    """PMET: MEMIT with targets for the last MLP's output. nll_loss_factor: factor on the nll."""

    nll_loss_factor: float = Field(1.0, gt=0)

    def weighed(self, nll, leads):
        return torch.where(leads, self.nll_loss_factor * 0.1 * nll, self.nll_loss_factor * nll)

    def done(self, loss, kl, p, leads, led):
        return super().done(loss, kl, p, leads, led) | leads & (kl <= KL_STOP)

    def _site(self, model):
        z_layer = self.layers[-1]
        places = model.mlp_out(z_layer), model.layers[z_layer].get_submodule(model.layout.attn_out)
        return Site(z_layer, self._loss_layer(model), places, model.mlp_out(self.layers[0]), inside=True)

    def _share(self, i):
        return 1 / sqrt(len(self.layers) - i)
