"""What clients read of a run config."""

from disue.config.data import DataSettings, HoldoutSettings
from disue.config.privacy import PrivacySettings
from disue.config.schedule import ScheduleSettings
from disue.config.settings import Settings
from disue.config.training import DeviceSettings, ModelSettings, TrainingSettings


class ClientConfig(
    ScheduleSettings,
    DataSettings,
    HoldoutSettings,
    ModelSettings,
    TrainingSettings,
    DeviceSettings,
    PrivacySettings,
    Settings,
):
    """The sections that clients read. A client knows no other keys of a run, and does without them."""
