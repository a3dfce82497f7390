"""systemd: unit files, and the notification of the service manager."""
