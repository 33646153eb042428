"""Named instances with the best values known."""

from edgeopt.evaluation.instances.library import best_known as best_known
from edgeopt.evaluation.instances.library import library_entry as library_entry
from edgeopt.evaluation.instances.library import library_names as library_names
from edgeopt.evaluation.instances.library import load_instance as load_instance
