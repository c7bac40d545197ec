// First questions, of the kind that the shipped model has learnt. The drawings are this project's own (NOTICE).

export interface Sample {
  readonly question: string;
  /** Files in samples/, and what they show. */
  readonly pictures: readonly { readonly name: string; readonly alt: string }[];
}

const apple = { name: "apple", alt: "a red apple" };
const fish = { name: "fish", alt: "a blue fish" };

export const withPictures: readonly Sample[] = [
  { question: "What is this?", pictures: [fish] },
  { question: "Which country's flag is this?", pictures: [{ name: "flag", alt: "a white flag with a red disc" }] },
  { question: "What kind of thing is it?", pictures: [{ name: "cat", alt: "an orange cat's face" }] },
  { question: "What do you see?", pictures: [apple] },
  { question: "Are these the same?", pictures: [apple, fish] },
  { question: "Which picture shows a fish?", pictures: [apple, fish] },
];

export const inWords: readonly Sample[] = [
  { question: "What is the capital of Japan?", pictures: [] },
  { question: "Is a dog an animal?", pictures: [] },
  { question: "On which continent is Kenya?", pictures: [] },
  { question: "Who are you?", pictures: [] },
];
