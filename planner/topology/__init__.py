"""The cluster as a graph: rank placement, communicators, and the bandwidth that each has."""

from planner.topology.links import GroupLink, group_link, group_links
from planner.topology.placement import Place, Progression, communicators, place_ranks

__all__ = ["GroupLink", "Place", "Progression", "communicators", "group_link", "group_links", "place_ranks"]
