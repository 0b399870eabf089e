"""The whole chain of a preset on one machine (`make paper`): stages in order, with the servers that each of them needs."""
