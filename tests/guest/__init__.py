"""A Debian machine under emulation, with cgroup v2 and systemd, to run the plugin's tests in."""
