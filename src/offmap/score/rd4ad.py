"""RD4AD: how badly a student draws the feature maps of a frozen network again."""

from dataclasses import dataclass
from typing import ClassVar

from offmap.score._one_map import TopOfMap


@dataclass(frozen=True, kw_only=True)
class RD4AD(TopOfMap):
    """RD4AD: the largest ``sum_l (1 - cos(teacher_l, student_l))`` over the positions of the image, in [0, 2 L] for L layers.

    A student, trained on in-distribution images alone, draws the maps of the frozen teacher from a narrow code of them, through which
    what is odd does not pass. The map holds the sum over layers at each position, on the finest of their grids. The paper smooths the map
    before it takes the largest value; here it is as it is.

    Needs a network that is trained for the gate: ``[encoder] spec = "train:rd4ad"``. Nothing is fitted; scoring takes the teacher's pass
    and one of the student; the state is empty.

    Fails where the student draws odd maps as well as usual ones: a code that is too wide, or training images that hold what is odd. The
    length of a vector is not seen.

    Args:
        top: share of the positions whose mean is the image's score; 0 for the highest one alone, 1 for all.
    """

    passes: ClassVar[str] = "2F"
    reference: ClassVar[str] = (
        "Deng & Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, arXiv 2201.10703, eq. 1-3"
    )
