"""Where images come from and go to: registries and OCI image layout directories."""
