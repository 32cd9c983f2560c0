"""Making empathetic dialogue data: what is said (scenarios), who says it and how, and the build of it all."""
