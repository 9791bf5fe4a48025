"""Images on an Anka host: tags of templates, found by the Registry's REST API and pulled by `anka pull`."""
