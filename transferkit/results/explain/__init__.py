"""Why a model answers as it does: heat maps and nearest training pictures. Read `explain` first."""
