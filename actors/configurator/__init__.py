"""The Configurator: from catalog and spec to SQL operations, and their execution."""
