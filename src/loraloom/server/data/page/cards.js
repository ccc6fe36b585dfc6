// Cards by their jobs' ids, those that the queue's lists do not show any more too.
import { useEffect, useState } from "./html.js";
import * as api from "./api.js";
import { cardOf, isOver, queue } from "./queue_state.js";
import { useStore } from "./state.js";

/** For each id its card; undefined while it is not known yet, null where it was removed from the list. */
export function useCards(ids) {
  const state = useStore(queue);
  const [fetched, setFetched] = useState({});
  const keep = (id, card) => setFetched((all) => ({ ...all, [id]: card }));
  useEffect(() => {
    if (!state) return;
    for (const id of ids) {
      if (cardOf(state, id) || fetched[id] === null || isOver(fetched[id])) continue;
      api.get(`v1/cards/${id}`).then((card) => keep(id, card), (error) => error.status === 404 && keep(id, null));
    }
  }, [state, ids.join()]);
  return ids.map((id) => cardOf(state, id) ?? fetched[id]);
}
