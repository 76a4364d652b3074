"""Makes the plugin importable, as its installation would."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "integrations" / "lerobot_policy_onset"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
