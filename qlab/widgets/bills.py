"""The explorer of a training step's bill."""

from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import Any

import ipywidgets

from qlab.bill import run_for
from qlab.checks.expect import as_number
from qlab.checks.learner import Crashed, LearnerFunction, NotAnswered
from qlab.checks.report import Refused
from qlab.config import GPT2_XL, LLAMA_2_7B, NAMED_CONFIGS, ModelConfig, count_parameters
from qlab.memory import GB, RECIPES, Recipe, adapter_parameters, model_state_bytes
from qlab.plots import bill_svg
from qlab.widgets.layout import WIDE

OWN_SHAPES = {"your own, like Llama": LLAMA_2_7B, "your own, like GPT-2": GPT2_XL}
SIZES = ("layers", "width", "heads", "kv_heads", "ffn_width", "vocabulary")
NARROW = ipywidgets.Layout(width="190px")
MIDDLE = ipywidgets.Layout(width="340px")
WRAPPED = ipywidgets.Layout(flex_flow="row wrap")
RAGGED_BLOCKS = 1e-4  # a last block that is not full may be counted whole; the least slip is 30 times as much


class BillExplorer(ipywidgets.VBox):
    """Choose a model or type its sizes, choose recipe and load, and see where the memory of a step goes.

    `state_bytes(parameters, recipe_name, adapters)`, if given, is the learner's own, as the lab asks for it: its number
    stands under the drawing, beside that of `qlab.memory.model_state_bytes`.
    """

    def __init__(self, state_bytes: Callable[..., Any] | None = None, *, config: ModelConfig = GPT2_XL) -> None:
        self._own = LearnerFunction(state_bytes) if state_bytes else None
        self._models = NAMED_CONFIGS | {config.name: config}
        self.model = ipywidgets.Dropdown(
            options=[*self._models, *OWN_SHAPES], value=config.name, description="model", layout=MIDDLE
        )
        self.recipe = ipywidgets.Dropdown(options=list(RECIPES), value="mixed-adam", description="recipe")
        self.batch = ipywidgets.IntText(1, description="batch", layout=NARROW)
        self.sequence = ipywidgets.IntText(min(1024, config.sequence), description="sequence", layout=NARROW)
        self.checkpointing = ipywidgets.Checkbox(description="checkpointing", indent=False)
        self.sizes = {name: ipywidgets.IntText(description=name, layout=NARROW) for name in SIZES}
        self.drawing = ipywidgets.HTML(layout=WIDE)
        self._moving = False
        self._choose(config.name)
        self.model.observe(lambda change: self._choose(change.new), "value")
        for control in (self.recipe, self.batch, self.sequence, self.checkpointing, *self.sizes.values()):
            control.observe(lambda _: self._show(), "value")
        load = [self.batch, self.sequence, self.checkpointing]
        rows = [[self.model, self.recipe], list(self.sizes.values()), load]
        super().__init__([*(ipywidgets.HBox(row, layout=WRAPPED) for row in rows), self.drawing])

    def _choose(self, name: str) -> None:
        """Show the sizes of a named model; those of a model of one's own can be typed over."""
        self._moving = True  # six sizes change, and one drawing is enough
        config = self._models.get(name) or OWN_SHAPES[name]
        for size, field in self.sizes.items():
            field.value, field.disabled = getattr(config, size), name in self._models
        self._moving = False
        self._show()

    def _config(self) -> ModelConfig:
        name = self.model.value
        if name in self._models:
            return self._models[name]
        sizes = {size: field.value for size, field in self.sizes.items()}
        return replace(OWN_SHAPES[name], name="your own", sequence=self.sequence.value, **sizes)

    def _show(self) -> None:
        if self._moving:
            return
        recipe = RECIPES[self.recipe.value]
        load = {"batch": self.batch.value, "sequence": self.sequence.value, "checkpointed": self.checkpointing.value}
        try:
            config, run = self._config(), run_for(recipe, **load)
            self.drawing.value = bill_svg(config, recipe, run, note=self._own_answer(config, recipe))
        except ValueError as refusal:
            self.drawing.value = f'<p role="alert">No such run: {escape(str(refusal))}.</p>'

    def _own_answer(self, config: ModelConfig, recipe: Recipe) -> str:
        if self._own is None:
            return ""
        parameters, adapters = count_parameters(config), adapter_parameters(config, rank=recipe.adapter_rank)
        expected = model_state_bytes(parameters, recipe, adapters=adapters).total
        try:
            answer = as_number(self._own(parameters, recipe.name, adapters), call="model_state_bytes")
        except NotAnswered:
            return "your model_state_bytes: not answered yet"
        except (Crashed, Refused) as failure:
            return f"your model_state_bytes: {failure}"
        same = abs(answer - expected) <= RAGGED_BLOCKS * expected
        said = "✓ as it should be" if same else f"✗ expected {expected / GB:,.4g} GB"
        return f"your model_state_bytes: {answer / GB:,.4g} GB  {said}"
