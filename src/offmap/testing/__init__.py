"""The contracts of offmap as a public test suite, for authors of methods inside and outside the package; needs no pytest.

from offmap.testing import check_detector
check_detector(MyDetector)
"""

from offmap.testing.detector import CHECKS, check_detector
from offmap.testing.subject import ContractError
from offmap.testing.world import FakeEncoder, World

__all__ = ["CHECKS", "ContractError", "FakeEncoder", "World", "check_detector"]
