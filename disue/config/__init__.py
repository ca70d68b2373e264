"""The run config: what a section of it is, and the sections that clients read."""

from disue.config.client import ClientConfig as ClientConfig
from disue.config.privacy import Privacy as Privacy
from disue.config.settings import Changeable as Changeable
from disue.config.settings import Multiple as Multiple
from disue.config.settings import Settings as Settings
from disue.config.settings import unfit_for_files as unfit_for_files
from disue.config.stored import StoredConfig as StoredConfig
