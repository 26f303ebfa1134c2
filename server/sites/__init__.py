"""Who may take part: the coordinator's authority, its invitations, and the sites that it knows."""
