"""What is trained: the model, its chains, the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from timm_linop.errors import RecipeError


@dataclass(frozen=True)
class ModelConfig:
    """The model to train.

    Attributes:
        model: timm architecture: the one to train dense, or the one a bare state dict in --pruned
            belongs to.
        pruned: Slim model to fine-tune: a folder of prune.py or train.py, a checkpoint file, or
            hf-hub:user/repo. None trains --model dense.
        pretrained: Start a dense model from timm's pretrained weights.
        reinit: Keep the structure only and draw new weights (from scratch, ExpandNets, vanilla
            distillation).
        in_chans: Input channels; None takes the model's own.
        img_size: Image size in pixels; None takes the model's own.
        drop: Dropout rate of the classifier.
        drop_path: Stochastic depth rate; None takes the model's own.
        model_kwargs: Further arguments of the architecture, such as ``output_stride=8``.
    """

    model: str | None = None
    pruned: str | None = None
    pretrained: bool = False
    reinit: bool = False
    in_chans: int | None = None
    img_size: int | None = None
    drop: float = 0.0
    drop_path: float | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DenseConfig:
    """The model to prune.

    Attributes:
        weights: Trained model: a folder of train.py, a checkpoint file of --model,
            hf-hub:user/repo, or "pretrained" for timm's own weights of --model.
        model: timm architecture, where the weights do not name it.
        in_chans: Input channels; None takes the model's own.
        img_size: Image size in pixels; None takes the model's own.
        drop: Dropout rate of the classifier.
        drop_path: Stochastic depth rate; None takes the model's own.
        model_kwargs: Further arguments of the architecture, such as ``output_stride=8``.
    """

    weights: str | None = None
    model: str | None = None
    in_chans: int | None = None
    img_size: int | None = None
    drop: float = 0.0
    drop_path: float | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExpandConfig:
    """Linear over-parameterisation.

    Attributes:
        rate: Expansion rate; 0 trains the slim layers themselves. None is 3 with --pruned, else 0.
        init: How factors are drawn: orthogonal, normal or balanced.
        include: Names or patterns of the only layers to expand.
        exclude: Names or patterns of layers to leave alone.
    """

    rate: float | None = None
    init: str = "orthogonal"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def effective(self, slim: bool) -> ExpandConfig:
        """Fill the rate: a slim model that is trained is expanded unless the user says otherwise.

        Example:
            >>> ExpandConfig().effective(slim=True).rate
            3
        """
        return replace(self, rate=(3 if slim else 0) if self.rate is None else self.rate)


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from a teacher: similarity-preserving (SP-KD), by its logits (KD), or both.

    Attributes:
        teacher: Dense teacher: a timm name, a folder (also local-dir:FOLDER) or hf-hub:user/repo.
        gamma: Weight of the similarity-preserving loss (the paper's is 3000); 0 leaves it out.
            None is 0.
        pairs: Layers to compare: all, blocks, stages, last, or layer names; student=teacher
            where the two differ.
        reduction: mean or sum over the pairs.
        sub_batch: Images per Gram matrix, at most.
        task_weight: Weight of the task's own loss beside them.
        kd_weight: Weight of the distillation of logits (Hinton et al. 2015); 0 leaves it out. None
            is 1 with --pruned where no gamma is given either, else 0.
        kd_temperature: Its temperature.
        teacher_img_size: Image size the teacher sees, in pixels; None is the student's, or the
            teacher's own where that cannot be changed.
    """

    teacher: str | None = None
    gamma: float | None = None
    pairs: tuple[str, ...] = ("blocks",)
    reduction: str = "mean"
    sub_batch: int = 32
    task_weight: float = 1.0
    kd_weight: float | None = None
    kd_temperature: float = 4.0
    teacher_img_size: int | None = None

    def effective(self, slim: bool) -> DistillConfig:
        """Fill the weights: unless told otherwise, a slim model follows its teacher's logits.

        Raises:
            RecipeError: If no gamma is given, but something that only SP-KD would heed.

        Example:
            >>> DistillConfig().effective(slim=True).kd_weight
            1.0
            >>> DistillConfig(gamma=3000).effective(slim=True).kd_weight
            0.0
        """
        self._check_heeded()
        follows = slim and self.gamma is None and self.kd_weight is None
        kd_weight = (1.0 if follows else 0.0) if self.kd_weight is None else self.kd_weight
        return replace(self, gamma=self.gamma or 0.0, kd_weight=kd_weight)

    def _check_heeded(self) -> None:
        """A gamma of 0 switches SP-KD off and may leave its settings; without one they are lost."""
        usual = DistillConfig()
        for name in ("pairs", "reduction", "sub_batch"):
            given = getattr(self, name)
            if self.gamma is None and given != getattr(usual, name):
                raise RecipeError(
                    f"{name}={given!r} is of the similarity-preserving loss, which is off without "
                    "a gamma; add --gamma (the paper's is 3000), or leave it out."
                )

    @property
    def asked(self) -> str | None:
        """The teacher, where it is asked anything."""
        return self.teacher if self.gamma or self.kd_weight else None

    @property
    def teacher_id(self) -> str | None:
        """The Hub id of the teacher that is asked, which becomes the card's base model."""
        hub, name = "hf-hub:", self.asked or ""
        return name.removeprefix(hub).split("@")[0] if name.startswith(hub) else None
