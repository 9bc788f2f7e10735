"""Why an unseen concept is not strictly unseen."""

from typing import Literal

from sharelock_ray.config import Config

WordNetRule = Literal["shared_name", "hypernym", "hyponym", "part", "whole", "sibling"]
"""What the unseen concept is to the seen one in WordNet: a puppy is a `hyponym` of a dog, a tail is a `part` of it."""
SurfaceRule = Literal["form", "possessive", "hyphenated", "spaced", "closed_compound"]
"""How a text of training names the unseen concept: "mice", "mouse's", "mouse-grey", "field mouse", "fieldmouse"."""
VisualRule = Literal["duplicate_image", "class_prototype", "pretraining"]
Rule = Literal[WordNetRule, SurfaceRule, "translation", "similarity", VisualRule]


class Evidence(Config):
    """One reason why `unseen` is not strictly unseen after training on `seen`.

    Args:
        seen: the concept of training, or the text that names `unseen`; of an image, its key.
        unseen: the concept of the test; of an image, its key.
        detail: the evidence as one plain sentence.
        distance: steps between both in WordNet's graph.
        score: a similarity; its scale is that of the encoder that `detail` names.
    """

    rule: Rule
    seen: str
    unseen: str
    detail: str
    distance: int | None = None
    score: float | None = None
