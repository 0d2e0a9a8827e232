"""All cases of the corpus; one file for each field of what people write."""

from tests.corpus.cases import classes, errors, handlers, llm, names, projects, types, values

CASES = [
    case for field in (handlers, classes, types, values, names, projects, errors, llm) for case in field.CASES
]
