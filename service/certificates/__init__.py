"""Privacy certificates: what is claimed for one finished job, and on what evidence."""
