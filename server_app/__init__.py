"""One run: config -> data -> strategy -> rounds -> artefacts."""
