"""Where the apps of a run are carried out: in this process, by Ray, or by whom a SuperLink knows."""
